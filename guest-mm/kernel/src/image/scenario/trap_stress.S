# trap_stress_round(pattern: RDI, found: RSI, window: RDX)
#
# Loads every register with a pattern, stores to eight pages that nothing maps, computes a while without faulting, and
# writes down what the registers hold then. Any trap in between that loses a bit shows.
#
# pattern and found, in quads: 0-12 rcx rdx rbx rbp rdi r8-r15, 13 rflags, 14 rax, 15 rsi - window (found only),
# 16-47 xmm0-15, 48-63 the red zone.
    .text
    .globl trap_stress_round
trap_stress_round:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rsi
    pushq %rdx
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu 16*8+\n*16(%rdi), %xmm\n
    movq 48*8+\n*8(%rdi), %rax
    movq %rax, -8-8*\n(%rsp)
    .endr
    movq %rdx, %rsi
    movq %rdi, %rax
    movq 0(%rax), %rcx
    movq 8(%rax), %rdx
    movq 16(%rax), %rbx
    movq 24(%rax), %rbp
    movq 32(%rax), %rdi
    movq 40(%rax), %r8
    movq 48(%rax), %r9
    movq 56(%rax), %r10
    movq 64(%rax), %r11
    movq 72(%rax), %r12
    movq 80(%rax), %r13
    movq 88(%rax), %r14
    movq 96(%rax), %r15
    leaq -128(%rsp), %rsp                   # past the red zone
    pushq 104(%rax)
    movq 112(%rax), %rax
    popfq
    leaq 128(%rsp), %rsp
    .rept 8
    movb %al, (%rsi)
    leaq 4096(%rsi), %rsi
    .endr
    .rept 400
    movb %al, -4096(%rsi)
    movb %ah, -4095(%rsi)
    .endr
    leaq -128(%rsp), %rsp
    pushfq
    pushq %rax
    cld
    movq 128+16+8(%rsp), %rax               # found
    movq %rcx, 0(%rax)
    movq %rdx, 8(%rax)
    movq %rbx, 16(%rax)
    movq %rbp, 24(%rax)
    movq %rdi, 32(%rax)
    movq %r8, 40(%rax)
    movq %r9, 48(%rax)
    movq %r10, 56(%rax)
    movq %r11, 64(%rax)
    movq %r12, 72(%rax)
    movq %r13, 80(%rax)
    movq %r14, 88(%rax)
    movq %r15, 96(%rax)
    popq 112(%rax)
    popq 104(%rax)
    leaq 128(%rsp), %rsp
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu %xmm\n, 16*8+\n*16(%rax)
    movq -8-8*\n(%rsp), %rcx
    movq %rcx, 48*8+\n*8(%rax)
    .endr
    popq %rdx
    subq %rdx, %rsi
    movq %rsi, 120(%rax)
    popq %rsi
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

# trap_stress_trash(): overwrites all xmm, as a handler that uses them might.
    .globl trap_stress_trash
trap_stress_trash:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    pcmpeqd %xmm\n, %xmm\n
    .endr
    ret
