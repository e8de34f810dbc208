/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What runs at reset: real mode, then flat protected mode, then main(). And what QEMU reads in the
 * image: OVMF's footer table (edk2 OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm), which ends 32
 * bytes before the end of the image.
 */
#include "firmware.h"

	.section .text.start, "ax"
	.code16
start16:
	cli
	cld
	/* CS has base 0xffff0000; start16 is the image's first byte. */
	data32 lgdt %cs:(gdt_pointer - start16 + IMAGE_BASE - SEGMENT_BASE)
	movl	%cr0, %eax
	orl	$1, %eax			/* CR0.PE */
	movl	%eax, %cr0
	ljmpl	$CODE_SELECTOR, $start32

	.code32
start32:
	movw	$DATA_SELECTOR, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	%ax, %fs
	movw	%ax, %gs
	movl	$STACK_TOP, %esp
	call	main
1:	hlt
	jmp	1b

	/* Application processors of SEV-ES begin here: the footer's reset block says so. */
	.code16
ap_start16:
	cli
1:	hlt
	jmp	1b

	.balign 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff		/* code: base 0, 4 GiB, 32 bits */
	.quad 0x00cf93000000ffff		/* data */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt

/* An entry: data, then le16 length of all, then the GUID, first three fields little-endian. */
	.macro guid a, b, c, d, e
	.long	\a
	.word	\b, \c
	.byte	(\d) >> 8, (\d) & 0xff
	.byte	((\e) >> 40) & 0xff, ((\e) >> 32) & 0xff, ((\e) >> 24) & 0xff
	.byte	((\e) >> 16) & 0xff, ((\e) >> 8) & 0xff, (\e) & 0xff
	.endm

	.section .footer, "a"
footer:
	.long	HASHES_BASE, HASHES_SIZE
	.word	26
	guid	0x7255371f, 0x3a3b, 0x4b04, 0x927b, 0x1da6efa8d454

	.long	SECRET_BASE, SECRET_SIZE
	.word	26
	guid	0x4c2eb361, 0x7d9b, 0x4cc3, 0x8081, 0x127c90d3d294

	.long	ap_start16
	.word	22
	guid	0x00f771de, 0x1a7e, 0x4fcb, 0x890e, 0x68c77e2fb44e

	.word	footer_end - footer
	guid	0x96b582de, 0x1fb2, 0x45f7, 0xbaea, 0xa366c55a082d
footer_end:

	.section .reset, "ax"
	.code16
	jmp	start16
	.balign 16, 0

	.section .note.GNU-stack, "", @progbits
