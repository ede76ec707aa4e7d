# The test guest of accelerator.rs: what every kernel does early, then four letters on the serial port.
# as --64 accelerator.S -o p.o && ld -Ttext 0x7c00 --oformat binary p.o -o p.bin
.code16
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    cld
    # Page tables: 0x1000 -> 0x2000 -> 0x3000 -> the first 2 MiB.
    movw $0x1000, %di
    movw $0x1000, %cx
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x0083, 0x3000
    # The timer's interrupt is 0x20; all others stay masked.
    movb $0x11, %al
    outb %al, $0x20
    movb $0x20, %al
    outb %al, $0x21
    movb $0x04, %al
    outb %al, $0x21
    movb $0x01, %al
    outb %al, $0x21
    movb $0xfe, %al
    outb %al, $0x21
    # Long mode with paging.
    movl $0x1000, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orb  $0x20, %al
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orb  $0x01, %ah
    wrmsr
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl  $0x80000001, %eax
    movl %eax, %cr0
    ljmpl $0x08, $long_mode
.code64
long_mode:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0x7c00, %esp
    # One gate of an interrupt table at 0x4000.
    movl $0x4200, %edi
    movl $handler, %eax
    movw %ax, (%rdi)
    movl $0x8e000008, %eax
    movw %ax, 2(%rdi)
    shrl $16, %eax
    movw %ax, 4(%rdi)
    lidt idt_pointer
    # Ordinary work: an instant for a processor, a fraction of a second for an emulator. Where each instruction is
    # looked at by itself it takes minutes.
    movl $50000000, %ecx
work:
    movl %ecx, 0x5000
    addl 0x5000, %eax
    decl %ecx
    jnz work
    # What every kernel does early.
    xorl %eax, %eax
    cpuid
    rdtsc
    xorl %ebx, %ebx
    sti
wait:
    hlt
    testl %ebx, %ebx
    jz wait
    movl $marker, %esi
    movl $4, %ecx
    movw $0x3f8, %dx
    rep outsb
stop:
    cli
    hlt
    jmp stop
handler:
    incl %ebx
    movb $0x20, %al
    outb %al, $0x20
    iretq
marker: .ascii "RZOK"
.balign 8
gdt: .quad 0, 0x00209a0000000000
gdt_pointer: .word 15
    .long gdt
idt_pointer: .word 0x20f
    .quad 0x4000
