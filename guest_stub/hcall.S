/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Making a hypercall, from supervisor and from problem state, and a way out of an
 * exception.
 */
#include "asm_defs.h"

	.text

.macro	SAVE_NONVOLATILE
	mflr	%r0
	std	%r0,16(%r1)
	mfcr	%r0
	std	%r0,8(%r1)
	stdu	%r1,-208(%r1)
	.irp	n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	std	%r\n,(48 + 8 * (\n - 14))(%r1)
	.endr
	std	%r2,24(%r1)
.endm

.macro	RESTORE_NONVOLATILE
	ld	%r2,24(%r1)
	.irp	n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	ld	%r\n,(48 + 8 * (\n - 14))(%r1)
	.endr
	addi	%r1,%r1,208
	ld	%r0,8(%r1)
	mtcr	%r0
	ld	%r0,16(%r1)
	mtlr	%r0
.endm

.macro	STORE_REGS
	.irp	n,3,4,5,6,7,8,9,10,11,12
	std	%r\n,(8 * \n)(%r31)
	.endr
.endm

/* r31 = struct hcall_regs: registers 0 to 12 at 8 * n; only 3 to 12 are passed. */
.macro	CALL_WITH_REGS level
	.irp	n,3,4,5,6,7,8,9,10,11,12
	ld	%r\n,(8 * \n)(%r31)
	.endr
	sc	\level
	STORE_REGS
.endm

/* void hcall_raw(struct hcall_regs *regs) */
	.globl	hcall_raw
hcall_raw:
	SAVE_NONVOLATILE
	mr	%r31,%r3
	CALL_WITH_REGS 1
	RESTORE_NONVOLATILE
	blr

/*
 * void ucall_raw(struct hcall_regs *regs)
 *
 * The same by "sc 2". An ultracall may go on elsewhere than after itself; if it does so
 * at ucall_landing, with all registers that it does not set, regs->r[0] is 1, else 0.
 */
	.globl	ucall_raw
ucall_raw:
	SAVE_NONVOLATILE
	mr	%r31,%r3
	CALL_WITH_REGS 2
	li	%r0,0
1:	std	%r0,0(%r31)
	RESTORE_NONVOLATILE
	blr

	.globl	ucall_landing
ucall_landing:
	STORE_REGS
	li	%r0,1
	b	1b

/*
 * void hcall_raw_user(struct hcall_regs *regs)
 * void ucall_raw_user(struct hcall_regs *regs)
 *
 * Both with MSR[PR] = 1. MSR[EE], [IR] and [DR] are forced on with it
 * (target/ppc/helper_regs.c hreg_store_msr), so mmu_enable_radix() comes first.
 */
.macro	CALL_FROM_USER level
	SAVE_NONVOLATILE
	std	%r1,CPU_USER_SP(%r13)
	mr	%r31,%r3
	bcl	20,31,1f
1:	mflr	%r12
	addi	%r12,%r12,2f - 1b
	mtsrr0	%r12
	mfmsr	%r11
	ori	%r11,%r11,MSR_PR | MSR_EE | MSR_IR | MSR_DR
	mtsrr1	%r11
	rfid

2:	CALL_WITH_REGS \level
	li	%r0,USER_RETURN_MAGIC
	sc
	trap
.endm

	.globl	hcall_raw_user
hcall_raw_user:
	CALL_FROM_USER 1

	.globl	ucall_raw_user
ucall_raw_user:
	CALL_FROM_USER 2

/* Reached from exception_entry, in supervisor state, with r13 valid. */
	.globl	user_return
user_return:
	ld	%r1,CPU_USER_SP(%r13)
	RESTORE_NONVOLATILE
	blr

/* int context_save(struct context *): 0, or 1 after context_restore() */
	.globl	context_save
context_save:
	mflr	%r0
	std	%r0,0(%r3)
	std	%r1,8(%r3)
	std	%r2,16(%r3)
	mfcr	%r0
	std	%r0,24(%r3)
	.irp	n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	std	%r\n,(32 + 8 * (\n - 14))(%r3)
	.endr
	li	%r3,0
	blr

/* void context_restore(struct context *) */
	.globl	context_restore
context_restore:
	ld	%r0,0(%r3)
	mtlr	%r0
	ld	%r1,8(%r3)
	ld	%r2,16(%r3)
	ld	%r0,24(%r3)
	mtcr	%r0
	.irp	n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	ld	%r\n,(32 + 8 * (\n - 14))(%r3)
	.endr
	li	%r3,1
	blr
