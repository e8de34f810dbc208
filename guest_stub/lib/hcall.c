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

int64_t ucall_args(struct hcall_regs *regs, uint64_t number, const uint64_t *args,
		   unsigned int count)
{
	hcall_fill(regs, number, args, count);
	ucall_raw(regs);
	return (int64_t)regs->r[3];
}

#define CODE_CASE(code)				\
	case (code):				\
		return #code;

const char *hcall_code_name(int64_t code)
{
	switch (code) {
	HCALL_H_CODES(CODE_CASE)
	}
	return NULL;
}

#define CALL_CASE(call, number, level, count, served)	\
	case (number):					\
		return #call;

const char *hcall_name(uint64_t number)
{
	switch (number) {
	HCALL_CALLS(CALL_CASE)
	}
	return NULL;
}
