# The four functions that the compiler calls on its own. `rep movsb` and `rep stosb` are the fast way in ring 3 on every
# CPU that KVM runs on; DF is clear by the ABI.
    .text
    .globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
    .globl memmove
memmove:
    movq %rdi, %rax
    movq %rdi, %rcx
    subq %rsi, %rcx
    cmpq %rdx, %rcx                         # unsigned: destination below source, or beyond its end
    jae memcpy
    leaq -1(%rdi, %rdx), %rdi
    leaq -1(%rsi, %rdx), %rsi
    movq %rdx, %rcx
    std
    rep movsb
    cld
    ret
    .globl memset
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
    .globl memcmp
    .globl bcmp
memcmp:
bcmp:
    xorl %eax, %eax
    testq %rdx, %rdx
    jz 1f
    xorl %ecx, %ecx
2:  movzbl (%rdi, %rcx), %eax
    movzbl (%rsi, %rcx), %r8d
    subl %r8d, %eax
    jne 1f
    incq %rcx
    cmpq %rdx, %rcx
    jne 2b
1:  ret
