// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One CPU makes a call that the host side delays; the others meanwhile invalidate
 * translations (tlbie waits for all CPUs) and run code that they have just written. A
 * vCPU that waits inside a call must not hold them up. Options:
 *	number=N	the call (GET_CONFIG)
 *	start-ms=N	wait between the line "# hold ready" and the call, so that the
 *			host can prepare the delay (0)
 *	hold-ms=N	the call must take at least this long (0)
 *	gap-ms=N	no other CPU may stand still for longer (500: on a busy host tens of
 *			ms are common, since tlbie waits for vCPUs that have no host CPU)
 *	run-ms=N	go on at least this long, for comparison without a delay (200)
 */
#include "console.h"
#include "mmu.h"
#include "pks.h"
#include "smp.h"
#include "string.h"
#include "test.h"
#include "timebase.h"

#define LI_R3		0x38600000u
#define BLR		0x4e800020u

static struct {
	volatile uint32_t done;
	bool has_tlbie;
	uint64_t number;
	int64_t code;
	uint64_t call_ticks, run_ticks, start_ms;
	struct barrier barrier;
	unsigned int count;
	struct {
		uint64_t rounds, max_gap, wrong;
	} cpu[MAX_CPUS];
} hold;

static uint32_t code_page[MAX_CPUS][1024] __attribute__((aligned(4096)));

static uint32_t run_fresh_code(unsigned int index, uint32_t value)
{
	uint32_t *code = code_page[index];
	union {
		uint32_t *words;
		uint32_t (*function)(void);
	} fresh = { .words = code };

	code[0] = LI_R3 | (value & 0x7fff);
	code[1] = BLR;
	asm volatile("dcbst 0,%0; sync; icbi 0,%0; sync; isync" : : "r"(code) : "memory");
	return fresh.function();
}

static void disturb(unsigned int index)
{
	uint64_t last = timebase(), now;
	uint32_t n = 0;

	/* At least once: the call may be over before this CPU has begun. */
	do {
		hold.cpu[index].wrong += run_fresh_code(index, n) != (n & 0x7fff);
		if (hold.has_tlbie)
			mmu_tlbie_process();
		n++;
		now = timebase();
		if (now - last > hold.cpu[index].max_gap)
			hold.cpu[index].max_gap = now - last;
		last = now;
	} while (!__atomic_load_n(&hold.done, __ATOMIC_SEQ_CST));
	hold.cpu[index].rounds = n;
}

static void hold_work(void *arg, unsigned int index)
{
	struct hcall_regs regs;
	uint64_t start;

	(void)arg;
	if (hold.has_tlbie)
		mmu_enter_process();
	barrier_wait(&hold.barrier, hold.count);
	if (index) {
		disturb(index);
		return;
	}
	console_printf("# hold ready\n");
	delay_ms(hold.start_ms);
	start = timebase();
	hold.code = HCALL(&regs, hold.number, (uintptr_t)pks_out, PKS_CONFIG_SIZE_6_12);
	hold.call_ticks = timebase() - start;
	while (timebase() - start < hold.run_ticks)
		cpu_relax();
	__atomic_store_n(&hold.done, 1, __ATOMIC_SEQ_CST);
}

static void test_hold(void)
{
	uint64_t gap_ms = arg_number("gap-ms", 500), hold_ms = arg_number("hold-ms", 0);
	unsigned int n;

	hold.count = smp_count();
	hold.number = arg_number("number", H_PKS_GET_CONFIG);
	hold.start_ms = arg_number("start-ms", 0);
	hold.run_ticks = timebase_from_ms(arg_number("run-ms", 200));
	if (hold.count < 2) {
		report_skip("one CPU: start QEMU with -smp 4");
		return;
	}
	hold.has_tlbie = mmu_enable_radix();
	if (!hold.has_tlbie)
		report_skip("tlbie needs a radix MMU: -cpu power9 or newer");
	if (!report(smp_run(hold.count, hold_work, NULL), "%u CPUs run", hold.count))
		return;
	console_printf("# hold number=0x%lx code=%ld call_us=%lu\n", hold.number,
		       (long)hold.code, timebase_to_ns(hold.call_ticks) / 1000);
	report(timebase_to_ns(hold.call_ticks) >= hold_ms * 1000000,
	       "the call took at least %lu ms", hold_ms);
	for (n = 1; n < hold.count; n++) {
		uint64_t gap = timebase_to_ns(hold.cpu[n].max_gap) / 1000;

		console_printf("# hold cpu=%u rounds=%lu max_gap_us=%lu\n", n,
			       hold.cpu[n].rounds, gap);
		report(hold.cpu[n].rounds > 0 && !hold.cpu[n].wrong,
		       "CPU %u ran what it had written", n);
		report(gap <= gap_ms * 1000, "and never stood still for %lu ms", gap_ms);
	}
}
STUB_TEST("hold", test_hold, "hold", false, "others run on while one CPU waits for a call");
