// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory that goes away and comes back. The host announces UV_UNSHARE_PAGE and takes it
 * for a request to page out the page at r4: its content is elsewhere when the call returns,
 * and what is there instead is wrong. Nothing here may ever see that. Options:
 *	rounds=N	how often a page goes that other CPUs use (50)
 */
#include "hcall.h"
#include "mmu.h"
#include "platform.h"
#include "prng.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define PAGE		4096

#define BUFFER		(FREE_RAM_BASE + 0x100000)
#define CODE		(FREE_RAM_BASE + 0x200000)
#define COUNTERS	(FREE_RAM_BASE + 0x300000)

static bool page_out(uint64_t address)
{
	struct hcall_regs regs;

	return UCALL(&regs, UV_UNSHARE_PAGE, address & -(uint64_t)PAGE, 1) == U_SUCCESS;
}

static void test_data(void)
{
	volatile uint8_t *bytes = (volatile uint8_t *)BUFFER;
	uint8_t copy[16];
	uint64_t hash, straddling;
	struct prng prng;

	prng_seed(&prng, 1);
	prng_fill(&prng, (void *)BUFFER, 3 * PAGE);
	hash = fnv1a((void *)BUFFER, 3 * PAGE);
	report(page_out(BUFFER), "a page goes");
	report_equal(fnv1a((void *)BUFFER, 3 * PAGE), hash, "and comes back as it was");

	memcpy(copy, (void *)(BUFFER + PAGE - 4), 8);
	report(page_out(BUFFER) && page_out(BUFFER + PAGE), "two neighbours go");
	straddling = *(volatile uint64_t *)(BUFFER + PAGE - 4);
	report(!memcmp(copy, &straddling, 8), "a load from both");
	report(page_out(BUFFER + PAGE) && page_out(BUFFER), "they go again");
	*(volatile uint64_t *)(BUFFER + PAGE - 4) = straddling;
	report_equal(fnv1a((void *)BUFFER, 3 * PAGE), hash, "a store to both");

	report(page_out(BUFFER), "one goes");
	bytes[5] ^= 0xff;
	report(page_out(BUFFER), "and once more");
	bytes[5] ^= 0xff;
	report_equal(fnv1a((void *)BUFFER, 3 * PAGE), hash, "with what was stored");

	report(page_out(BUFFER), "one goes");
	__atomic_add_fetch((uint32_t *)BUFFER, 1, __ATOMIC_SEQ_CST);
	report(page_out(BUFFER), "and once more");
	__atomic_sub_fetch((uint32_t *)BUFFER, 1, __ATOMIC_SEQ_CST);
	report_equal(fnv1a((void *)BUFFER, 3 * PAGE), hash, "an atomic access");

	report(page_out(BUFFER), "one goes");
	asm volatile("dcbz 0,%0" : : "r"(BUFFER + PAGE / 2) : "memory");
	report_equal(bytes[PAGE / 2] | bytes[PAGE / 2 + 127], 0, "dcbz");
	report_equal(fnv1a((void *)(BUFFER + PAGE), 2 * PAGE),
		     (page_out(BUFFER + PAGE), fnv1a((void *)(BUFFER + PAGE), 2 * PAGE)),
		     "the others are as they were");
}

static void test_code(void)
{
	static const uint32_t code[] = {
		0x38630001,	/* addi r3,r3,1 */
		0x4e800020,	/* blr */
	};
	uint64_t (*function)(uint64_t n) = (uint64_t (*)(uint64_t))CODE;
	unsigned int n, wrong = 0;

	memcpy((void *)CODE, code, sizeof(code));
	asm volatile("dcbst 0,%0; sync; icbi 0,%0; isync" : : "r"(CODE) : "memory");
	for (n = 0; n < 5; n++) {
		wrong += function(n) != n + 1;
		wrong += !page_out(CODE);
	}
	report_equal(wrong, 0, "a function whose page goes between its calls");
}

static void test_tables(void)
{
	uint64_t tables[MMU_TABLES];
	struct hcall_regs regs;
	unsigned int n;

	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	mmu_tables(tables);
	for (n = 0; n <= MMU_TABLES; n++) {
		/* Each, and then all of them. */
		report(page_out(tables[n % MMU_TABLES]), "a part of the radix tree goes");
		if (n == MMU_TABLES)
			report(page_out(tables[1]) && page_out(tables[2]), "so do the others");
		mmu_tlbie_process();
		hcall_fill(&regs, UV_READ_SCOM, NULL, 0);
		ucall_raw_user(&regs);
		report_code((int64_t)regs.r[3], U_FUNCTION, "problem state does not see it");
	}
}

struct counting {
	struct barrier barrier;
	unsigned int count, rounds;
	volatile uint32_t done;
	uint64_t failed;
	uint64_t own[MAX_CPUS];
};

/* Until another CPU has come by. */
static void counters_wait(volatile uint64_t *common)
{
	uint64_t before = *common;

	while (*common == before)
		cpu_relax();
}

static void count_work(void *arg, unsigned int index)
{
	volatile uint64_t *counter = (volatile uint64_t *)COUNTERS + index;
	volatile uint64_t *common = (volatile uint64_t *)COUNTERS + MAX_CPUS;
	struct counting *state = arg;
	unsigned int n;

	barrier_wait(&state->barrier, state->count);
	if (index == 0) {
		for (n = 0; n < state->rounds; n++) {
			state->failed += !page_out(COUNTERS);
			/* Now and then this CPU is the one that misses it. */
			if (n % 2)
				counters_wait(common);
		}
		state->done = 1;
		return;
	}
	while (!state->done) {
		for (n = 0; n < 1000; n++)
			(*counter)++;
		state->own[index] += 1000;
		atomic_add(common, 1);
	}
}

static void test_cpus(void)
{
	volatile uint64_t *counters = (volatile uint64_t *)COUNTERS;
	static struct counting state;
	uint64_t common = 0;
	unsigned int n, count = smp_count();

	if (count < 2) {
		report_skip("one CPU: start QEMU with -smp 4");
		return;
	}
	memset((void *)COUNTERS, 0, PAGE);
	memset(&state, 0, sizeof(state));
	state.count = count;
	state.rounds = (unsigned int)arg_number("rounds", 50);
	report(smp_run(count, count_work, &state), "%u CPUs run", count);
	report_equal(state.failed, 0, "their page went %u times", state.rounds);
	for (n = 1; n < count; n++) {
		report_equal(counters[n], state.own[n], "CPU %u has lost nothing", n);
		common += state.own[n] / 1000;
	}
	report_equal(counters[MAX_CPUS], common, "nor have all together");
}

static void test_page(void)
{
	test_data();
	test_code();
	test_tables();
	test_cpus();
}
STUB_TEST("page", test_page, "page", false, "memory that is paged out under the guest");
