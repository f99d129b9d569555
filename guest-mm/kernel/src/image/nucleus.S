# The nucleus: all that runs in ring 0. docs/nucleus.md explains it; read that first.
#
# Everything per CPU is generated for each CPU with absolute addresses, so that
# a stub needs no register and no GS. Every address fits a sign-extended 32-bit
# operand because the image lies in the top 2 GiB. Instruction counts matter:
# a software KVM interprets each of them (about 1 us).

    .set NB, {nucleus}                      # first page of the nucleus
    .set CPUS, {cpus}
    .set DOWN, {kernel_base}                # virtual minus physical address
    .set V0, {first_vector}
    .set VECTORS, {vectors}
    .set FLAG_ID, 0x200000                  # RFLAGS.ID: "masked" while in ring 3
    .set SLOT, 64                           # bytes of a stub
    .set APIC_EOI, {apic_eoi}

    .set MUTANT, {mutant}                   # 0, or a deliberate fault that the trap stress must find: see nucleus.rs

    .set C, 0                               # the CPU being generated
    .macro per_cpu_addresses
    .set CODE, NB + ({code_page} + C) * 4096
    .set IDT, NB + ({idt_page} + C) * 4096
    .set DATA, NB + ({data_page} + C) * 4096
    .set STACK, NB + ({stack_page} + C) * 4096
    .set SHARED, NB + {shared_page} * 4096 + C * {shared_stride}
    .set PENDING, SHARED                    # u32: one bit per vector
    .set STRAY, SHARED + 4                  # u32: interrupts on vectors nobody owns
    .set SCRATCH, SHARED + 16               # 4 quads for the interrupt landing
    .set E, STACK + 0x1000 - 48             # RSP0 frame: error rip cs rflags rsp ss
    .set IST1, STACK + 0xe00                # toggles with STACK + 0xc00
    .set EV, E - {alias}                    # E as ring 3 may read it
    .set FE, DATA                           # ready-made iretq frames into ring 3
    .set FI, DATA + 0x40
    .set FP, DATA + 0x80
    .set GDT, DATA + 0x100
    .set GDTR, DATA + 0x180                 # high address, then the physical one for entry
    .set IDTR, DATA + 0x190
    .set GDTR_LOW, DATA + 0x1a0
    .set TSS, DATA + 0x200
    .set TRAP_STACK, {trap_stack} + C * {trap_stack_stride}
    .set TRAP_TOP, TRAP_STACK + {trap_stack_bytes}
    .endm

    .section .nucleus, "awx", @progbits
# ---------------------------------------------------------------- page 0: entry
    .code32
    .globl nucleus_pvh_entry
    .set C, 0
    per_cpu_addresses
nucleus_pvh_entry:                          # EBX = start info; paging off, flat segments, interrupts off
    cli
    cld
    lgdtl GDTR_LOW - DOWN
    movl $0x620, %eax                       # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $(NB - DOWN + {tables_page} * 4096), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                  # EFER: LME, NXE
    movl $0x900, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax                  # PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmpl $0x10, $(nucleus_start64 - DOWN)

    .code64
nucleus_start64:
    movq $(STACK + 0x1000), %rsp
    movq $nucleus_start_high, %rax
    jmpq *%rax
nucleus_start_high:
    lgdt GDTR
    lidt IDTR
    movl $0x40, %eax
    ltr %ax
    xorl %eax, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl $0xc0000101, %ecx                  # GS base = this CPU's shared words
    movl $(SHARED & 0xffffffff), %eax
    movl $0xffffffff, %edx
    wrmsr
    movb $0xff, %al                         # both 8259: nothing; their lines also reach the I/O APIC
    outb %al, $0x21
    outb %al, $0xa1
    pushq $0x2b
    pushq $({main_stack_top})
    pushq $(FLAG_ID + 0x202)
    pushq $0x33
    pushq $landing_main
    movl %ebx, %edi
    iretq

# The other CPUs come here from startup.S, in long mode, on the startup tables; each leaves for its own stack in ring 3.
    .macro other_cpu cpu
    .set C, \cpu
    per_cpu_addresses
    .globl nucleus_cpu_entry_\cpu
nucleus_cpu_entry_\cpu:
    movq $(STACK + 0x1000), %rsp
    lgdt GDTR
    lidt IDTR
    movl $0x40, %eax
    ltr %ax
    xorl %eax, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl $0xc0000101, %ecx
    movl $(SHARED & 0xffffffff), %eax
    movl $0xffffffff, %edx
    wrmsr
    pushq $0x2b
    pushq $({stack_slots} + (C + 1) * {stack_slot_bytes})
    pushq $(FLAG_ID + 0x202)
    pushq $0x33
    pushq $landing_cpu
    iretq
    .endm
    .irp cpu, 1, 2, 3
    other_cpu \cpu
    .endr
    .set C, 0
    per_cpu_addresses

# A trap that the nucleus cannot hand to ring 3: report it and end. On the stack: vector error rip cs rflags rsp ss.
# Never silent: COM1, then pvpanic, then the reset line, then a triple fault.
nucleus_fatal:
    cld
    leaq 8f(%rip), %rsi
    call nucleus_say
    movq %cr2, %rax
    pushq %rax
    movq %rsp, %rdi                         # cr2 vector error rip cs rflags rsp ss
    movl $8, %ebp
3:  movb $32, %al
    outb %al, %dx
    movq (%rdi), %rbx
    movl $16, %ecx
4:  rolq $4, %rbx
    movl %ebx, %eax
    andl $15, %eax
    movb 9f(%rax), %al
    outb %al, %dx
    decl %ecx
    jnz 4b
    addq $8, %rdi
    decl %ebp
    jnz 3b
    movb $10, %al
    outb %al, %dx
    movl $0x505, %edx
    movb $1, %al
    outb %al, %dx
    movb $0xfe, %al
    outb %al, $0x64
    pushq $0                                # no reset line (QEMU microvm): no IDT either, so the CPU shuts down
    pushq $0
    lidt (%rsp)
    ud2
8:  .asciz "\nnucleus: fatal trap: cr2 vector error rip cs rflags rsp ss ="
9:  .ascii "0123456789abcdef"

# Prints the string at RSI; leaves COM1 in DX.
nucleus_say:
    movl $0x3f8, %edx
1:  lodsb
    testb %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  ret

# An interrupt in ring 0 elsewhere than at the HLT, where IF is clear: no CPU does that, an emulated one has (docs/lab.md). The
# frame that it interrupted was at the same place and is lost.
nucleus_interrupted:
    cld
    leaq 8f(%rip), %rsi
    call nucleus_say
    pushq $0
    pushq ${interrupt_vector}
    jmp nucleus_fatal
8:  .asciz "\nnucleus: interrupt delivered while interrupts were off"

# ---------------------------------------------------------------- stubs
# An exception: frame on RSP0's stack, saved RAX and the vector below it, then ring 3's landing. From ring 0: fatal.
    .macro exception vec, has_error
    .org CODE - NB + \vec * SLOT
    .if \has_error == 0
    pushq $0
    .endif
    testb $3, 16(%rsp)
    jz 9f
    pushq %rax
    pushq $\vec
    movq $FE, %rsp
    iretq
9:  pushq $\vec
    jmp nucleus_fatal
    .endm

# No CS test here (1 us): the nucleus touches only its own pages, the shared words and the APIC, which are always mapped.
    .macro page_fault
    .org CODE - NB + 14 * SLOT
    pushq %rax
    movq %cr2, %rax
    pushq %rax
    movq $FP, %rsp
    iretq
    .endm

    .macro fatal_exception vec, has_error
    .org CODE - NB + \vec * SLOT
    .if \has_error == 0
    pushq $0
    .endif
    pushq $\vec
    jmp nucleus_fatal
    .endm

# An interrupt: record it; if the interrupted code was unmasked, enter ring 3's landing with RSP at this frame and move
# IST1 away, for the next (masked) one comes before ring 3 has copied the frame.
    .macro interrupt bit
    .org CODE - NB + (32 + \bit) * SLOT
    orl $(1 << \bit), PENDING
    testb $(FLAG_ID >> 16), 18(%rsp)
    jnz 1f
    .if MUTANT == {interrupt_while_off_unmasked}
    call 22b
    .endif
    .if MUTANT != 4
    xorb $(0x200 >> 8), TSS + 0x25
    .endif
    movq %rsp, FI + 24
    movq $FI, %rsp
    iretq
1:  testb $3, 8(%rsp)
    jz 18b
    .if MUTANT == {interrupt_while_off_masked}
    call 22b
    .endif
    iretq
    .endm

    .set C, 0
    .rept CPUS
    per_cpu_addresses
    exception 0, 0
    exception 1, 0
    fatal_exception 2, 0                    # NMI, IST2
    .org CODE - NB + 3 * SLOT               # int3: the gate
    cmpq $(gate_invlpg_int3 + 1), (%rsp)
    jne 1f
    invlpg (%rdi)
    iretq
1:  cmpq $(gate_int3 + 1), (%rsp)
    jne 2f
    jmpq *(CODE + 60 * SLOT)(, %r8, 8)      # gate() in landing.S bounds R8
2:  jmp 3f
    exception 4, 0
    exception 5, 0
    exception 6, 0
    exception 7, 0
    fatal_exception 8, 1                    # double fault, IST3
    exception 9, 0
    exception 10, 1
    exception 11, 1
    exception 12, 1
    exception 13, 1
    page_fault
    .org CODE - NB + 15 * SLOT              # int3 that is not the gate's: a breakpoint
3:  pushq $0
    testb $3, 16(%rsp)
    jz 4f
    pushq %rax
    pushq $3
    movq $FE, %rsp
    iretq
4:  pushq $3
    jmp nucleus_fatal
    exception 16, 0
    exception 17, 1
    fatal_exception 18, 0                   # machine check, IST4
    exception 19, 0
    exception 20, 0
    exception 21, 1
    .org CODE - NB + 22 * SLOT              # a vector nobody owns, IST5: count it, end it, never hang on it
    incl STRAY
    movl $0, APIC_EOI
    iretq
    .org CODE - NB + 23 * SLOT              # spurious, IST5: has no EOI
    iretq
    .org CODE - NB + 24 * SLOT              # the gate's operations, indexed by R8
10: movq %rdi, %cr3
    iretq
11: cmpl $0, PENDING                        # halt; the caller is masked
    .if MUTANT != 3
    jne 12f
    .endif
    sti
17: hlt                                     # the interrupt that ends it finds RFLAGS.ID set: recorded, not reflected
12: iretq
13: movl $0x6e0, %ecx                       # EDX:EAX -> TSC deadline
    wrmsr
    iretq
14: movl $0x4b564d01, %ecx                  # EDX:EAX -> KVM system time
    wrmsr
    iretq
15: cpuid
    iretq
18: cmpq $12b, (%rsp)                       # an interrupt in ring 0: it ended the gate's HLT,
    jne 19f
    iretq
19: cmpq $17b, (%rsp)                       # or came between STI and HLT, where none should but on an emulated SVM some do,
    jne nucleus_interrupted
    incq (%rsp)                             # and skips the HLT: it would sleep with its wake-up behind it
    iretq
    .if MUTANT == {interrupt_while_off_masked} || MUTANT == {interrupt_while_off_unmasked}
    .if MUTANT == {interrupt_while_off_masked}
    .set FAKED_FLAGS, FLAG_ID + 2
    .else
    .set FAKED_FLAGS, 2
    .endif
22: btsl $0, SHARED + 12                    # once
    jc 23f
    movq TSS + 0x24, %rsp                   # what a CPU does; INT is not dependable on a software KVM
    pushq $0
    pushq $(STACK + 0xdd8)
    pushq $FAKED_FLAGS
    pushq $0x10
    pushq $22b
    movq $(CODE + (32 + VECTORS - 1) * SLOT), %rax
    jmpq *%rax
23: ret
    .endif
    .set BIT, 0
    .rept VECTORS
    interrupt BIT
    .set BIT, BIT + 1
    .endr
    .org CODE - NB + 60 * SLOT              # see enum Operation in gate.rs
    .quad 10b, 11b, 13b, 14b, 15b
    .set C, C + 1
    .endr

# ---------------------------------------------------------------- interrupt descriptor tables
    .macro descriptor slot, ist, dpl
    .word (CODE + (\slot) * SLOT) & 0xffff, 0x10
    .byte \ist, 0x8e | (\dpl << 5)
    .word ((CODE + (\slot) * SLOT) >> 16) & 0xffff
    .long 0xffffffff, 0
    .endm
    .set C, 0
    .rept CPUS
    per_cpu_addresses
    .org IDT - NB
    .set V, 0
    .rept 256
    .if V == 2
    descriptor 2, 2, 0
    .elseif V == 3
    descriptor 3, 0, 3
    .elseif V == 8
    descriptor 8, 3, 0
    .elseif V == 15
    descriptor 22, 5, 0
    .elseif V == 18
    descriptor 18, 4, 0
    .elseif V < 22
    descriptor V, 0, 0
    .elseif V == 0xff
    descriptor 23, 5, 0
    .elseif (V >= V0) && (V < V0 + VECTORS)
    descriptor (32 + V - V0), 1, 0
    .else
    descriptor 22, 5, 0
    .endif
    .set V, V + 1
    .endr
    .set C, C + 1
    .endr

# ---------------------------------------------------------------- frames, GDT, TSS
    .macro frame rip
    .quad \rip, 0x33, FLAG_ID + 0x202, TRAP_TOP, 0x2b
    .endm
    .irp cpu, 0, 1, 2, 3
    .set C, \cpu
    per_cpu_addresses
    .org FE - NB
    frame landing_exception_\cpu
    .org FI - NB
    frame landing_interrupt_\cpu
    .org FP - NB
    frame landing_page_fault_\cpu
    .org GDT - NB                           # Linux's selectors: 0x10, 0x18, 0x23, 0x2b, 0x33, TSS 0x40
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
    .quad 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff, 0
    .word 0x129, TSS & 0xffff
    .byte (TSS >> 16) & 0xff, 0x89, 0, (TSS >> 24) & 0xff
    .long 0xffffffff, 0
    .org GDTR - NB
    .word 0x4f
    .quad GDT
    .org IDTR - NB
    .word 0xfff
    .quad IDT
    .org GDTR_LOW - NB
    .word 0x4f
    .long GDT - DOWN
    .org TSS - NB
    .long 0
    .quad STACK + 0x1000, 0, 0, 0           # RSP0
    .quad IST1, STACK + 0xa00, STACK + 0x800, STACK + 0x600, STACK + 0x400, 0, 0, 0
    .word 0
    .word 0x68                              # I/O permission bitmap: 0 bits are the ports of ring 3
    .org TSS - NB + 0x68
    .fill 0x08, 1, 0xff
    .byte 0xf3                              # 0x42, 0x43: PIT channel 2 and its mode
    .fill 0x0c - 0x09, 1, 0xff
    .byte 0xed                              # 0x61: PIT gate; 0x64: reset
    .fill 0x7f - 0x0d, 1, 0xff
    .byte 0x00                              # 0x3f8-0x3ff: COM1
    .fill 0xa0 - 0x80, 1, 0xff
    .byte 0xdf                              # 0x505: pvpanic
    .fill 0xc0 - 0xa1, 1, 0xff
    .byte 0xcf                              # 0x604, 0x605: power off
    .byte 0xff
    .endr

    .org NB + {shared_page} * 4096 - NB
    .irp cpu, 0, 1, 2, 3
    .set C, \cpu
    per_cpu_addresses
    .org SHARED - NB
    .long 0, 0, C, 0
    .org SHARED - NB + 48
    .quad SHARED                            # so that ring 3 finds them: %gs:48
    .endr

# ---------------------------------------------------------------- link-time page tables
    .set TABLES, NB - DOWN + {tables_page} * 4096
    .set LEAF_BOOT, 0x67                    # present, writable, user, accessed, dirty
    .macro table index
    .org (TABLES + \index * 4096) - (NB - DOWN)
    .endm
    table 0                                 # PML4
    .quad TABLES + 1 * 4096 + 0x23          # identity: supervisor
    .set DIRECT_SLOT, ({direct_map} >> 39) & 511
    .fill DIRECT_SLOT - 1, 8, 0
    .quad TABLES + 2 * 4096 + 0x27
    .fill 510 - DIRECT_SLOT, 8, 0
    .quad TABLES + 3 * 4096 + 0x27
    table 1                                 # identity
    .quad TABLES + 4 * 4096 + 0x23
    .fill 511, 8, 0
    table 2                                 # direct map
    .quad TABLES + 4 * 4096 + 0x27
    .fill 511, 8, 0
    table 3                                 # kernel: -2 GiB image, -1 GiB devices
    .fill 510, 8, 0
    .quad TABLES + 5 * 4096 + 0x27
    .quad TABLES + 6 * 4096 + 0x27
    table 4                                 # first GiB
    .quad LEAF_BOOT + 0x80 + 0x8000000000000000
    .quad TABLES + 8 * 4096 + 0x27
    .set N, 2
    .rept 510
    .quad N * 0x200000 + LEAF_BOOT + 0x80 + 0x8000000000000000
    .set N, N + 1
    .endr
    table 5
    .quad TABLES + 9 * 4096 + 0x27          # the view of the entry stacks
    .quad TABLES + 7 * 4096 + 0x27
    .quad TABLES + 10 * 4096 + 0x27
    .fill 509, 8, 0
    table 6                                 # device windows: the first is the local APIC's
    .quad 0xfee00000 + LEAF_BOOT + 0x98 + 0x8000000000000000
    .fill 511, 8, 0
    table 7                                 # the image: refined by ring 3 as soon as it runs
    .set N, 0
    .rept 512
    .set GPA, NB - DOWN + N * 4096
    .if N < {code_page} + CPUS
    .quad GPA + 0x61                        # nucleus code: supervisor, read-only
    .elseif N < {idt_page} + CPUS
    .quad GPA + 0x61 + 0x8000000000000000
    .elseif N < {shared_page}
    .quad GPA + 0x63 + 0x8000000000000000   # nucleus data and stacks: supervisor
    .elseif N < {tables_page} + {tables}
    .quad GPA + LEAF_BOOT + 0x8000000000000000
    .else
    .quad GPA + LEAF_BOOT
    .endif
    .set N, N + 1
    .endr
    table 8                                 # the same region in the direct map
    .set N, 0                               # entry code and its GDT: the identity map's; ring 3 removes both
    .rept 512
    .if (N == 0) || (N == {data_page})
    .quad NB - DOWN + N * 4096 + 0x61
    .elseif N < {shared_page}
    .quad 0
    .else
    .quad NB - DOWN + N * 4096 + LEAF_BOOT + 0x8000000000000000
    .endif
    .set N, N + 1
    .endr
    table 9
    .fill {stack_page}, 8, 0
    .set N, {stack_page}
    .rept CPUS
    .quad NB - DOWN + N * 4096 + 0x8000000000000025
    .set N, N + 1
    .endr
    .fill 512 - {stack_page} - CPUS, 8, 0

    table 10                                # the region behind the image: stacks
    .set N, 0
    .rept 512
    .set GPA, {image_limit} + N * 4096
    .if (GPA >= {main_stack} - DOWN) && (GPA < {main_stack_top} - DOWN)
    .quad GPA + LEAF_BOOT + 0x8000000000000000
    .elseif (GPA >= {trap_stack} - DOWN) && ((GPA - ({trap_stack} - DOWN)) % {trap_stack_stride} < {trap_stack_bytes})
    .quad GPA + LEAF_BOOT + 0x8000000000000000
    .else
    .quad 0
    .endif
    .set N, N + 1
    .endr

# ---------------------------------------------------------------- PVH note
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                          # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad nucleus_pvh_entry - DOWN
    .text
