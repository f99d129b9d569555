# Ring 3's side of the nucleus: where traps land, how they return, and the gate. docs/nucleus.md.
#
# Nothing here may fault, and no breakpoint or single step belongs here: an
# exception in a landing overwrites the frame that it is about to copy.

    .section .text.landing, "ax", @progbits

# Interrupts and faults at user addresses land on the interrupted code's own stack, past its red zone: whoever handles them
# may wait, be preempted and let other threads run. All other exceptions are bugs, the stack may be the reason, and they
# land on the CPU's trap stack. A stack that has no room for a frame faults in the kernel half, here, and is such a bug.

# Chooses the trap stack: its top, or below the frame that is already there.
    .macro choose_trap_stack
    cmpl $((TRAP_STACK >> 16) & 0xffffffff), EV + 34
    je 3f
    movq $TRAP_TOP, %rsp
    jmp 2f
    .endm
# Chooses the interrupted stack, and pushes the interrupted RIP..SS and the error code on whichever was chosen.
    .macro push_frame
3:  movq EV + 32, %rsp
    subq $128, %rsp
2:  pushq EV + 40
    pushq EV + 32
    pushq EV + 24
    pushq EV + 16
    pushq EV + 8
    pushq EV
    .endm

    .macro landings cpu
    .set C, \cpu
    per_cpu_addresses
    .balign 16
landing_exception_\cpu:
    choose_trap_stack
    push_frame
    pushq EV - 16                           # vector
    pushq EV - 8                            # rax
    pushq $0
    jmp landing_common
landing_page_fault_\cpu:
    testb $0x80, EV - 9                     # CR2's sign: the kernel half
    jz 3f
    choose_trap_stack
    push_frame
    pushq $14
    pushq EV - 8                            # rax
    pushq EV - 16                           # cr2
    jmp landing_common
landing_interrupt_\cpu:                          # RSP = the frame, at its supervisor address
    subq ${alias}, %rsp
    popq SCRATCH
    popq SCRATCH + 8
    popq SCRATCH + 16
    popq SCRATCH + 24
    movq SCRATCH + 24, %rsp
    subq $128, %rsp
    testb $3, SCRATCH + 8
    jnz 1f
    movq $TRAP_TOP, %rsp                    # ring 0 was interrupted, where interrupts are off: the report needs a stack
1:  pushq $0x2b
    pushq SCRATCH + 24
    pushq SCRATCH + 16
    pushq SCRATCH + 8
    pushq SCRATCH
    pushq $0
    pushq ${interrupt_vector}
    pushq %rax
    pushq $0
    jmp landing_common
    .endm
    .irp cpu, 0, 1, 2, 3
    landings \cpu
    .endr

# Saves the rest, calls trap_entry(&frame), restores, and returns with a ring-3 IRETQ that nobody in ring 0 sees.
landing_common:
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    movq %rsp, %rbx
    subq $512, %rsp
    andq $-16, %rsp
    fxsave64 (%rsp)
    call trap_entry
    .if MUTANT != 1
    fxrstor64 (%rsp)
    .endif
    movq %rbx, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    addq $8, %rsp
    popq %rax
    addq $16, %rsp
    testl $FLAG_ID, 16(%rsp)                # back to masked code: IRETQ restores that by itself
    jnz 1f
    pushq $0x202                            # unmask first, then look: the other order loses one
    popfq
    .if MUTANT != 2
    cmpl $0, %gs:0
    jne 2f
    .endif
1:  iretq
2:  pushq $(FLAG_ID + 0x202)
    popfq
    pushq $0
    pushq ${replay_vector}
    pushq %rax
    pushq $0
    jmp landing_common

# Ring 3 begins here, masked, on the boot CPU's stack; EDI = start info. The loader may not have cleared .bss (a reboot
# in place does not).
    .globl landing_main
landing_main:
    movl %edi, %ebx
    leaq image_bss_start(%rip), %rdi
    leaq image_end(%rip), %rcx
    subq %rdi, %rcx
    xorl %eax, %eax
    rep stosb
    movl %ebx, %edi
    xorl %ebp, %ebp
    call kernel_main
    ud2

# The other CPUs' ring 3 begins here, masked, each on its own stack.
landing_cpu:
    xorl %ebp, %ebp
    call cpu_main
    ud2

# thread_switch(save: *mut u64, rsp: u64): leaves this stack with what a function must preserve on it, and goes on where
# another thread left its own. Masked.
    .globl thread_switch
thread_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret

# A new thread's first address: the frames end here.
    .globl thread_begin
thread_begin:
    xorl %ebp, %ebp
    call thread_main
    ud2

# The gate. R8 = operation, RDI or EAX, ECX, EDX = operands. Both INT3s are known to the nucleus by address, so the bound
# check cannot be passed by.
    .globl gate
gate:
    cmpq ${operations}, %r8
    jae 1f
gate_int3:
    int3
1:  ret
    .globl gate_invlpg
gate_invlpg:
gate_invlpg_int3:
    int3
    ret
    .text
