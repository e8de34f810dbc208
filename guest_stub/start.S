/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Entry of the first and of further CPUs, calls into Open Firmware, and the common
 * part of the exception vectors.
 *
 * Firmware and RTAS start-cpu enter in big-endian mode whatever the image's byte
 * order (hw/ppc/spapr_cpu_core.c, spapr_rtas.c), and Open Firmware comes back in it,
 * so the code at those places is laid down in big-endian byte order by BE_INSN.
 */
#include "asm_defs.h"

/* One instruction as four big-endian bytes, for either byte order of the object. */
.macro	BE_INSN word
	.byte	((\word) >> 24) & 0xff, ((\word) >> 16) & 0xff
	.byte	((\word) >> 8) & 0xff, (\word) & 0xff
.endm

/*
 * From big-endian, 32 or 64 bit, to the mode the stub runs in: 64 bit, its own byte
 * order, interrupts and translation off. Changes r11, r12, LR; the next instruction
 * is the first in the new mode.
 */
.macro	NATIVE_MODE
	BE_INSN	0x39600001			/* li	r11,1 */
	BE_INSN	0x796bf806			/* sldi	r11,r11,63	MSR[SF] */
	BE_INSN	0x616b0000 | MSR_NATIVE_LOW	/* ori	r11,r11,... */
	BE_INSN	0x429f0005			/* bcl	20,31,.+4 */
	BE_INSN	0x7d8802a6			/* mflr	r12 */
	BE_INSN	0x398c0014			/* addi	r12,r12,20	past the rfid */
	BE_INSN	0x7d9a03a6			/* mtsrr0 r12 */
	BE_INSN	0x7d7b03a6			/* mtsrr1 r11 */
	BE_INSN	0x4c000024			/* rfid */
.endm

/* r2 for C code, wherever we are. Changes r12 and LR. */
.macro	LOAD_TOC
	bcl	20,31,9f
9:	mflr	%r12
	addis	%r2,%r12,(.TOC.-9b)@ha
	addi	%r2,%r2,(.TOC.-9b)@l
.endm

.macro	LOAD_ADDR reg sym
	addis	\reg,%r2,\sym@toc@ha
	addi	\reg,\reg,\sym@toc@l
.endm

	.section .head, "ax", @progbits

/*
 * First CPU. r5 = Open Firmware client interface entry (IEEE 1275 PowerPC binding
 * 8.2.2); r3 and r4 describe an initrd, which we do not use. After UV_ESM (lib/esm.c) r5
 * is 0, r3 the device tree, r4 where we are, and the byte order is the image's.
 *
 * So little-endian code must tell which it is. "tdi 0,0,0x48" never traps; read in the
 * other order it is "b .+8", as in Linux's FIXUP_ENDIAN.
 */
	.globl	_start
_start:
#ifdef __LITTLE_ENDIAN__
	tdi	0,%r0,0x48
	b	1f
#endif
	NATIVE_MODE
1:	mr	%r30,%r5
	mr	%r29,%r3
	mr	%r28,%r4
	LOAD_TOC

	LOAD_ADDR %r3, __bss_start
	LOAD_ADDR %r4, __bss_end
	li	%r0,0
1:	cmpld	%r3,%r4
	bge	2f
	std	%r0,0(%r3)
	addi	%r3,%r3,8
	b	1b

2:	LOAD_ADDR %r13, cpus
	mtsprg	0,%r13
	LOAD_ADDR %r1, boot_stack_top
	li	%r0,0
	stdu	%r0,-64(%r1)
	mr	%r3,%r30
	mr	%r4,%r29
	mr	%r5,%r28
	bl	stub_main
	nop
3:	b	3b

/* Further CPUs. r3 = address of the CPU's struct cpu, as given to start-cpu. */
	.globl	secondary_start
secondary_start:
	NATIVE_MODE
	mr	%r13,%r3
	mtsprg	0,%r13
	LOAD_TOC
	ld	%r1,CPU_STACK_TOP(%r13)
	li	%r0,0
	stdu	%r0,-64(%r1)
	bl	smp_secondary
	nop
4:	b	4b

	.text

/*
 * void of_enter(uint32_t args, uint64_t entry)
 *
 * The client interface is called as Linux does: 32 bit, big-endian, translation off.
 * Callee-saved registers hold only 32 bits there, so all of them are kept here.
 */
	.globl	of_enter
of_enter:
	mflr	%r0
	std	%r0,16(%r1)
	mfcr	%r0
	std	%r0,8(%r1)
	stdu	%r1,-224(%r1)
	std	%r2,24(%r1)
	.irp	n,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	std	%r\n,(48 + 8 * (\n - 13))(%r1)
	.endr
	LOAD_ADDR %r12, of_saved_sp
	std	%r1,0(%r12)
	LOAD_ADDR %r12, of_return
	mtlr	%r12
	li	%r11,MSR_ME
	mtsrr0	%r4
	mtsrr1	%r11
	rfid

	.balign	4
of_return:
	NATIVE_MODE
	LOAD_TOC
	LOAD_ADDR %r12, of_saved_sp
	ld	%r1,0(%r12)
	.irp	n,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	ld	%r\n,(48 + 8 * (\n - 13))(%r1)
	.endr
	ld	%r2,24(%r1)
	mtsprg	0,%r13
	addi	%r1,%r1,224
	ld	%r0,8(%r1)
	mtcr	%r0
	ld	%r0,16(%r1)
	mtlr	%r0
	blr

/*
 * Common part of all vectors. lib/exception.c fills every vector with
 *	mtsprg 1,r13; mfsprg r13,0; std r3,FRAME_GPR(3)(r13); li r3,vector;
 *	b exception_entry
 * MSR[LE] is set as the image needs it, because the stub sets LPCR[ILE] first.
 */
	.globl	exception_entry
exception_entry:
	std	%r3,FRAME_VECTOR(%r13)
	.irp	n,0,1,2,4,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	std	%r\n,FRAME_GPR(\n)(%r13)
	.endr
	mfsprg	%r4,1
	std	%r4,FRAME_GPR(13)(%r13)
	mfsrr0	%r4
	std	%r4,FRAME_NIP(%r13)
	mfsrr1	%r5
	std	%r5,FRAME_MSR(%r13)
	mflr	%r4
	std	%r4,FRAME_LR(%r13)
	mfctr	%r4
	std	%r4,FRAME_CTR(%r13)
	mfxer	%r4
	std	%r4,FRAME_XER(%r13)
	mfcr	%r4
	std	%r4,FRAME_CR(%r13)
	mfdar	%r4
	std	%r4,FRAME_DAR(%r13)
	mfdsisr	%r4
	std	%r4,FRAME_DSISR(%r13)

	/* The way back from problem state: "sc 0" with MSR[PR] and the agreed r0. */
	cmpdi	%r3,0xc00
	bne	5f
	andi.	%r4,%r5,MSR_PR
	beq	5f
	cmpdi	%r0,USER_RETURN_MAGIC
	beq	user_return

5:	LOAD_TOC
	ld	%r1,CPU_EXCEPTION_STACK_TOP(%r13)
	li	%r0,0
	stdu	%r0,-64(%r1)
	addi	%r3,%r13,CPU_FRAME
	bl	exception_handle
	nop

	/* It returned: resume what was interrupted. */
	ld	%r4,FRAME_NIP(%r13)
	mtsrr0	%r4
	ld	%r4,FRAME_MSR(%r13)
	mtsrr1	%r4
	ld	%r4,FRAME_LR(%r13)
	mtlr	%r4
	ld	%r4,FRAME_CTR(%r13)
	mtctr	%r4
	ld	%r4,FRAME_XER(%r13)
	mtxer	%r4
	ld	%r4,FRAME_CR(%r13)
	mtcr	%r4
	.irp	n,0,1,2,3,4,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	ld	%r\n,FRAME_GPR(\n)(%r13)
	.endr
	ld	%r13,FRAME_GPR(13)(%r13)
	rfid

	.section .bss.aligned, "aw", @nobits
	.balign	16
boot_stack:
	.space	32768
boot_stack_top:

	.bss
	.balign	8
of_saved_sp:
	.space	8
