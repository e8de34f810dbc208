// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Every call of a secure VM's families, and numbers that are none, from every context
 * that this boot has: kernel and problem state of two CPUs; both levels of sc; arguments
 * of zeros, and such as no call can take. What came of each is printed for the host to
 * judge, who knows what the guest is:
 *
 *	# call CPU k|u LEVEL NUMBER z|x RESULT CHANGED
 *
 * RESULT is r3, signed, or the vector that sc led to, as v0xc00. CHANGED has a bit for
 * each of r4 to r12 that is no more what it was.
 */
#include "exception.h"
#include "hcall.h"
#include "mmu.h"
#include "platform.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define FIRST_NUMBER	0xef00	/* of a secure VM's families, but for H_RANDOM */

static const uint64_t numbers[] = {
#define NUMBER(name, number, level, count, served)	number,
	HCALL_CALLS(NUMBER)
#undef NUMBER
	/* Below, between, above and beside them. */
	0xef01, 0xef13, 0xef18, 0xef80, 0xf100, 0xf102, 0xf131, 0xf154, 0xf1fc,
	0xf131ull << 32, 1ull << 32 | UV_SHARE_PAGE, 1ull << 63 | UV_ESMB_GET_FILE, ~0ull,
};

static bool is_ours(uint64_t number)
{
	return number >= FIRST_NUMBER || number == H_RANDOM;
}

typedef void (*call_fn)(struct hcall_regs *regs);

static const struct context_of {
	call_fn call;
	char state;
	unsigned int level;
} contexts[] = {
	{ hcall_raw, 'k', 1 },
	{ ucall_raw, 'k', 2 },
	{ hcall_raw_user, 'u', 1 },
	{ ucall_raw_user, 'u', 2 },
};

struct attempt {
	call_fn call;
	struct hcall_regs regs;
};

static void make(void *arg)
{
	struct attempt *attempt = arg;

	attempt->call(&attempt->regs);
}

static unsigned int changed(const struct hcall_regs *before, const struct hcall_regs *after)
{
	unsigned int n, bits = 0;

	for (n = 4; n < 13; n++)
		bits |= (unsigned int)(before->r[n] != after->r[n]) << n;
	return bits;
}

static void try_one(unsigned int cpu, const struct context_of *in, uint64_t number, bool is_zero)
{
	static const uint64_t zeros[9];
	struct attempt attempt = { .call = in->call };
	struct hcall_regs before;
	uint64_t vector;

	hcall_fill(&attempt.regs, number, zeros, is_zero ? 9 : 0);
	before = attempt.regs;
	vector = exception_try(make, &attempt);
	if (vector)
		report_info("call %u %c %u 0x%lx %c v0x%lx 0x0", cpu, in->state, in->level,
			    number, is_zero ? 'z' : 'x', vector);
	else
		report_info("call %u %c %u 0x%lx %c %ld 0x%x", cpu, in->state, in->level,
			    number, is_zero ? 'z' : 'x', (long)attempt.regs.r[3],
			    changed(&before, &attempt.regs));
}

static void try_all(void *arg, unsigned int index)
{
	unsigned int n, in;

	mmu_enter_process();
	/* One after the other, so that one CPU's calls do not explain another's. */
	if (index != *(unsigned int *)arg)
		return;
	for (in = 0; in < sizeof(contexts) / sizeof(contexts[0]); in++) {
		for (n = 0; n < sizeof(numbers) / sizeof(numbers[0]); n++) {
			if (!is_ours(numbers[n]))
				continue;
			try_one(index, &contexts[in], numbers[n], true);
			try_one(index, &contexts[in], numbers[n], false);
		}
	}
}

static void test_secure_calls(void)
{
	unsigned int cpu;

	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	for (cpu = 0; cpu < 2; cpu++)
		report(smp_run(2, try_all, &cpu), "all calls are made on CPU %u", cpu);
}
STUB_TEST("secure_calls", test_secure_calls, "secure_calls", false,
	  "every call of a secure VM's families from every context");
