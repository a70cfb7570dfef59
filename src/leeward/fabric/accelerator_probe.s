# Boot sector with which accelerator.py proves that KVM runs a guest to its end.
#
# Real mode -> long mode under its own page tables -> 20 interrupts of a 1 kHz timer, halted
# in between -> port 0xf4 (isa-debug-exit): QEMU exits with status 33.
# as --64 accelerator_probe.s -o p.o && objcopy -O binary -j .text p.o p.bin
        .code16
        .org    0
start:  cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        cld
        # page tables: PML4 0x1000 -> PDPT 0x2000 -> PD 0x3000 -> one 2 MiB page at 0
        movw    $0x1000, %di
        movw    $0x2000, %cx            # 4 pages of words: tables and IDT at 0x4000
        rep stosw
        movw    $0x2003, 0x1000
        movw    $0x3003, 0x2000
        movw    $0x0083, 0x3000
        # IDT entry 0x20: interrupt gate to tick
        movw    $0x7c00 + tick - start, 0x4200
        movw    $0x08, 0x4202
        movw    $0x8e00, 0x4204
        lidt    0x7c00 + idtr - start
        lgdt    0x7c00 + gdtr - start
        # timer: both PICs from vector 0x20, IRQ 0 only; PIT channel 0 at 1 kHz
        movb    $0x11, %al
        outb    %al, $0x20
        movb    $0x20, %al
        outb    %al, $0x21
        movb    $0x04, %al
        outb    %al, $0x21
        movb    $0x01, %al
        outb    %al, $0x21
        movb    $0xfe, %al
        outb    %al, $0x21
        movb    $0xff, %al
        outb    %al, $0xa1
        movb    $0x34, %al
        outb    %al, $0x43
        movb    $0xa9, %al
        outb    %al, $0x40
        movb    $0x04, %al
        outb    %al, $0x40
        # long mode
        movl    $0xa0, %eax             # PAE, PGE
        movl    %eax, %cr4
        movl    $0x1000, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       # EFER
        rdmsr
        orl     $0x100, %eax            # LME
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000001, %eax       # PG, PE
        movl    %eax, %cr0
        ljmpw   $0x08, $0x7c00 + long_mode - start
        .code64
long_mode:
        xorl    %ebx, %ebx
        sti
wait:   hlt
        cmpl    $20, %ebx
        jb      wait
        movb    $0x10, %al
        outb    %al, $0xf4
stop:   hlt
        jmp     stop
tick:   incl    %ebx
        movb    $0x20, %al
        outb    %al, $0x20
        iretq
        .balign 8
gdt:    .quad   0
        .quad   0x00209a0000000000
        .quad   0x0000920000000000
gdtr:   .word   . - gdt - 1
        .long   0x7c00 + gdt - start
idtr:   .word   0x2ff
        .long   0x4000
        .org    510
        .word   0xaa55
