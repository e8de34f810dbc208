// SPDX-License-Identifier: GPL-2.0-or-later
/* Filling in a call's registers, and names for people. */
#include "hcall.h"

#include <stddef.h>

void hcall_fill(struct hcall_regs *regs, uint64_t number, const uint64_t *args,
		unsigned int count)
{
	unsigned int n;

	for (n = 0; n < 13; n++)
		regs->r[n] = HCALL_POISON(n);
	regs->r[3] = number;
	for (n = 0; n < count && n < 9; n++)
		regs->r[4 + n] = args[n];
}

int64_t hcall_args(struct hcall_regs *regs, uint64_t number, const uint64_t *args,
		   unsigned int count)
{
	hcall_fill(regs, number, args, count);
	hcall_raw(regs);
	return (int64_t)regs->r[3];
}

#define NAMED(code) { (code), #code }

static const struct {
	int64_t code;
	const char *name;
} codes[] = {
	NAMED(H_SUCCESS),
	NAMED(H_BUSY),
	NAMED(H_CLOSED),
	NAMED(H_NOT_AVAILABLE),
	NAMED(H_LONG_BUSY_ORDER_1_MSEC),
	NAMED(H_LONG_BUSY_ORDER_10_MSEC),
	NAMED(H_LONG_BUSY_ORDER_100_MSEC),
	NAMED(H_LONG_BUSY_ORDER_1_SEC),
	NAMED(H_LONG_BUSY_ORDER_10_SEC),
	NAMED(H_LONG_BUSY_ORDER_100_SEC),
	NAMED(H_HARDWARE),
	NAMED(H_FUNCTION),
	NAMED(H_PRIVILEGE),
	NAMED(H_PARAMETER),
	NAMED(H_NOT_FOUND),
	NAMED(H_NO_MEM),
	NAMED(H_AUTHORITY),
	NAMED(H_PERMISSION),
	NAMED(H_DROPPED),
	NAMED(H_RESOURCE),
	NAMED(H_R_STATE),
	NAMED(H_ABORTED),
	NAMED(H_P2),
	NAMED(H_P3),
	NAMED(H_P4),
	NAMED(H_P5),
	NAMED(H_P6),
	NAMED(H_P7),
	NAMED(H_P8),
	NAMED(H_P9),
	NAMED(H_TOO_BIG),
	NAMED(H_UNSUPPORTED),
	NAMED(H_BAD_DATA),
	NAMED(H_STATE),
	NAMED(H_IN_USE),
};

static const struct {
	uint64_t number;
	const char *name;
} calls[] = {
	NAMED(H_PKS_GET_CONFIG),
	NAMED(H_PKS_SET_PASSWORD),
	NAMED(H_PKS_GEN_PASSWORD),
	NAMED(H_PKS_WRITE_OBJECT),
	NAMED(H_PKS_GEN_KEY),
	NAMED(H_PKS_READ_OBJECT),
	NAMED(H_PKS_REMOVE_OBJECT),
	NAMED(H_PKS_CONFIRM_OBJECT_FLUSHED),
	NAMED(H_PKS_SIGNED_UPDATE),
	NAMED(H_PKS_WRAP_OBJECT),
	NAMED(H_PKS_UNWRAP_OBJECT),
};

const char *hcall_code_name(int64_t code)
{
	unsigned int n;

	for (n = 0; n < sizeof(codes) / sizeof(codes[0]); n++) {
		if (codes[n].code == code)
			return codes[n].name;
	}
	return NULL;
}

const char *hcall_name(uint64_t number)
{
	unsigned int n;

	for (n = 0; n < sizeof(calls) / sizeof(calls[0]); n++) {
		if (calls[n].number == number)
			return calls[n].name;
	}
	return NULL;
}
