/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any hypercall, with any registers, from supervisor or problem state.
 *
 * Numbers and codes of the calls under test come from hcall_numbers.h, which is
 * generated; this header names only what QEMU itself serves and the stub needs.
 */
#ifndef STUB_HCALL_H
#define STUB_HCALL_H

#include <stdbool.h>
#include <stdint.h>

#include "hcall_numbers.h"

/* LoPAR 14.5.4, and QEMU's private range (include/hw/ppc/spapr.h). */
#define H_GET_TERM_CHAR			0x54
#define H_PUT_TERM_CHAR			0x58
#define H_SET_MODE			0x31c
#define H_SIGNAL_SYS_RESET		0x380
#define H_REGISTER_PROC_TBL		0x37c
#define H_GET_CPU_CHARACTERISTICS	0x1c8
#define KVMPPC_H_RTAS			0xf000
#define H_SET_PARTITION_TABLE		0xf800
#define H_ENTER_NESTED			0xf804
#define H_TLB_INVALIDATE		0xf808
#define H_COPY_TOFROM_GUEST		0xf80c
#define H_GUEST_GET_CAPABILITIES	0x460
#define H_GUEST_CREATE			0x470
#define H_GUEST_RUN_VCPU		0x480

/* Registers r0 to r12 by their number; a call takes and gives back r3 to r12. */
struct hcall_regs {
	uint64_t r[13];
};

void hcall_raw(struct hcall_regs *regs);
void hcall_raw_user(struct hcall_regs *regs);

/* Ultracalls. r[0] is 1 if the call went on at ucall_landing, 0 if after itself. */
void ucall_raw(struct hcall_regs *regs);
void ucall_raw_user(struct hcall_regs *regs);
void ucall_landing(void);

/*
 * What an argument register holds that the caller did not name: a call must not look
 * at it, and if it does, no test passes by accident.
 */
#define HCALL_POISON(n)	(0xdead0000beef0000ull | (uint64_t)(n) << 32 | (n))

void hcall_fill(struct hcall_regs *regs, uint64_t number, const uint64_t *args,
		unsigned int count);
int64_t hcall_args(struct hcall_regs *regs, uint64_t number, const uint64_t *args,
		   unsigned int count);

/*
 * int64_t HCALL(regs, number, r4, r5, ...): make the call and return r3; *regs then
 * holds all outputs. Takes at most nine arguments.
 */
#define HCALL(regs, number, ...)						\
	hcall_args((regs), (number), (const uint64_t[]){ __VA_ARGS__ },		\
		   sizeof((const uint64_t[]){ __VA_ARGS__ }) / sizeof(uint64_t))

/* The same for an ultracall. */
int64_t ucall_args(struct hcall_regs *regs, uint64_t number, const uint64_t *args,
		   unsigned int count);

#define UCALL(regs, number, ...)						\
	ucall_args((regs), (number), (const uint64_t[]){ __VA_ARGS__ },		\
		   sizeof((const uint64_t[]){ __VA_ARGS__ }) / sizeof(uint64_t))

/* "H_P2" for -55; NULL for a number that has no name. */
const char *hcall_code_name(int64_t code);

/* "H_PKS_GET_CONFIG" for 0x41c; NULL for a call that the table does not have. */
const char *hcall_name(uint64_t number);

#endif
