/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A Linux program's first instruction: r1 is its words, no TOC is set (ELF V2 ABI). */
	.abiversion 2
	.section ".text", "ax"
	.globl	_start
	.type	_start, @function
_start:
	addis	2, 12, .TOC. - _start@ha
	addi	2, 2, .TOC. - _start@l
	mr	3, 1
	clrrdi	1, 1, 4
	li	0, 0
	stdu	0, -32(1)
	bl	start_c
	nop
	trap
	.size	_start, . - _start
	.section .note.GNU-stack, "", @progbits
