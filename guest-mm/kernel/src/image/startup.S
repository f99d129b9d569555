# Where the other CPUs start: real mode, at a page below 1 MiB, straight to long mode. startup.rs copies this once per CPU
# and fills the fields in; it reaches nothing but its own page until it jumps to the nucleus.

    .section .rodata.startup, "a", @progbits
    .balign 16
    .code16
    .globl startup_begin
startup_begin:                              # CS:IP = page / 16 : 0
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl startup_gdtr - startup_begin
    movl $0x620, %eax                       # PAE, OSFXSR, OSXMMEXCPT: as nucleus_pvh_entry
    movl %eax, %cr4
    movl $0, %eax                           # the startup root
    .globl startup_root
    .set startup_root, . - 4
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x900, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax
    movl %eax, %cr0
    .byte 0x66, 0xea                        # ljmpl $0x10, $startup_long in this page
    .globl startup_long_address
startup_long_address:
    .long 0
    .word 0x10
    .code64
    .globl startup_long
startup_long:
    movq startup_entry(%rip), %rax
    jmpq *%rax
    .balign 8
    .globl startup_gdt
startup_gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
startup_gdtr:
    .word 0x1f
    .globl startup_gdt_address
startup_gdt_address:
    .long 0
    .balign 8
    .globl startup_entry
startup_entry:
    .quad 0
    .globl startup_end
startup_end:
    .text
