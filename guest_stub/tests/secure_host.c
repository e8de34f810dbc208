// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a secure VM gets from its host: random numbers, and memory. The host answers UV_ESM
 * as in secure.c.
 */
#include "asm_defs.h"
#include "hcall.h"
#include "smp.h"
#include "test.h"

#define HOSTS_RANDOM	0x5eed5eed0badcafeull

static uint64_t secure_bit(void)
{
	uint64_t msr;

	asm volatile("mfmsr %0" : "=r"(msr) : : "memory");
	return msr & MSR_S;
}

static void become_secure(void)
{
	struct hcall_regs regs;

	report(smp_wait(), "all other CPUs stop");
	hcall_fill(&regs, UV_ESM, (const uint64_t[]){ (uintptr_t)ucall_landing, 1 }, 2);
	ucall_raw(&regs);
	report_equal(secure_bit(), MSR_S, "MSR[S] is set");
}

/*
 * random=1: QEMU has a random number device; it is a normal VM's only. The host announces
 * H_RANDOM of secure VMs, and answers HOSTS_RANDOM.
 */
static void test_random(void)
{
	int64_t expected = arg_number("random", 0) ? H_SUCCESS : H_FUNCTION;
	struct hcall_regs regs;
	unsigned int n;

	for (n = 0; n < 3; n++) {
		report_code(HCALL(&regs, H_RANDOM), expected, "a normal VM's H_RANDOM");
		report(regs.r[4] != HOSTS_RANDOM, "is not the ultravisor's");
	}
	become_secure();
	for (n = 0; n < 3; n++) {
		report_code(HCALL(&regs, H_RANDOM), H_SUCCESS, "a secure VM's H_RANDOM");
		report_equal(regs.r[4], HOSTS_RANDOM, "is the ultravisor's");
	}
}
STUB_TEST("secure_random", test_random, "hosted", false, "who answers H_RANDOM");

/*
 * UV_SHARE_PAGE plugs memory, and its r4 is where; UV_UNSHARE_PAGE takes it away, and is
 * told what was read there. count=N: how often.
 */
static void test_plug(void)
{
	uint64_t address, n, count = arg_number("count", 2);
	volatile uint64_t *memory;
	struct hcall_regs regs;

	become_secure();
	for (n = 0; n < count; n++) {
		report_code(UCALL(&regs, UV_SHARE_PAGE, n, 0), U_SUCCESS, "memory is plugged");
		address = regs.r[4];
		memory = (volatile uint64_t *)address;
		report_equal(memory[0], 0, "at 0x%lx are zeros", address);
		report_equal(memory[1000], 0, "in its second page, too");
		memory[0] = memory[1000] = 0x1111111111111111ull * (n + 1);
		report_equal(memory[0], memory[1000], "it keeps what is stored");
		report_code(UCALL(&regs, UV_UNSHARE_PAGE, n, memory[0]), U_SUCCESS, "it is gone");
	}
}
STUB_TEST("secure_plug", test_plug, "hosted", false, "memory that a secure VM gets");
