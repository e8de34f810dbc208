// SPDX-License-Identifier: GPL-2.0-or-later
/* The stub's own ground: nothing here needs more than QEMU. */
#include "console.h"
#include "exception.h"
#include "hcall.h"
#include "mmu.h"
#include "platform.h"
#include "prng.h"
#include "smp.h"
#include "string.h"
#include "test.h"
#include "timebase.h"

/* An opcode in PAPR's range that nobody has ever given a meaning. */
#define UNASSIGNED_HCALL	0xfff8ull

static void test_endian(void)
{
	const uint8_t bytes[] = { 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef };
	uint64_t word;
	uint8_t out[9];
	unsigned int n;

	memcpy(&word, bytes, 8);
	report_equal(be64(word), 0x0123456789abcdefull, "be64 of bytes in memory");
#ifdef __LITTLE_ENDIAN__
	report_equal(word, 0xefcdab8967452301ull, "the CPU runs little-endian");
#else
	report_equal(word, 0x0123456789abcdefull, "the CPU runs big-endian");
#endif
	report_equal(load_be16(bytes + 1), 0x2345, "load_be16 unaligned");
	report_equal(load_be32(bytes + 3), 0x6789abcd, "load_be32 unaligned");
	for (n = 0; n < 2; n++) {
		store_be64(out + n, 0x0123456789abcdefull);
		report(!memcmp(out + n, bytes, 8), "store_be64 at offset %u", n);
	}
}
STUB_TEST("endian", test_endian, "self", true, "byte order of the CPU and the accessors");

static void test_text(void)
{
	char text[64];
	uint64_t value;

	format_text(text, sizeof(text), "%d|%5u|%-4u|%04x|%s|%c|%%|%lx", -7, 42u, 7u, 0xabu,
		    "s", 'c', 0xfedcba9876543210ul);
	report(!strcmp(text, "-7|   42|7   |00ab|s|c|%|fedcba9876543210"), "formats: %s", text);
	report_equal((uint64_t)format_text(text, 4, "%s", "longer"), 3, "output is cut off");
	report(parse_number("0x10", &value) && value == 16, "0x10 is 16");
	report(parse_number("18446744073709551615", &value) && value == ~0ull, "2^64 - 1");
	report(!parse_number("18446744073709551616", &value), "2^64 is refused");
	report(!parse_number("12a", &value) && !parse_number("", &value), "no number, refused");
	report(strcmp("a", "b") < 0 && !strcmp("ab", "ab") && strncmp("ab", "ac", 1) == 0,
	       "comparisons");
	memcpy(text, "abcdef", 7);
	memmove(text + 2, text, 4);
	report(!strcmp(text, "ababcd"), "memmove of overlapping bytes");
}
STUB_TEST("text", test_text, "self", true, "formatting and parsing");

static void test_memory(void)
{
	uint64_t address, bad = 0, tested = 0;
	unsigned int n;

	for (n = 0; n < platform.ram_count; n++)
		report_info("ram 0x%lx to 0x%lx", platform.ram[n].base,
			    platform.ram[n].base + platform.ram[n].size);
	report(platform.ram_count > 0 && platform.ram[0].base == 0, "RAM begins at 0");
	report(platform.ram_end >= 2 * FREE_RAM_BASE, "there is RAM above the image");
	report(platform.mmio_base >= platform.ram_end, "MMIO at 0x%lx lies above RAM",
	       platform.mmio_base);
	for (address = FREE_RAM_BASE; address < platform.ram_end; address += 1 << 20)
		*(volatile uint64_t *)address = ~address;
	for (address = FREE_RAM_BASE; address < platform.ram_end; address += 1 << 20) {
		bad += *(volatile uint64_t *)address != ~address;
		tested++;
	}
	report_equal(bad, 0, "a word in each of %lu MiB keeps its value", tested);
	address = platform.ram_end - 8;
	*(volatile uint64_t *)address = 0x5a5a;
	report_equal(*(volatile uint64_t *)address, 0x5a5a, "the last word of RAM is RAM");
}
STUB_TEST("memory", test_memory, "self", true, "the memory map of the device tree");

static void test_timebase(void)
{
	uint64_t start = timebase(), last = start, now, back = 0;
	unsigned int n;

	for (n = 0; n < 10000; n++) {
		now = timebase();
		back += now < last;
		last = now;
	}
	report(platform.timebase_hz >= 1000000, "%u ticks in a second", platform.timebase_hz);
	report_equal(back, 0, "never runs backwards");
	start = timebase();
	delay_ms(20);
	now = timebase_to_ns(timebase() - start) / 1000000;
	report(now >= 20 && now < 5000, "a delay of 20 ms took %lu ms", now);
	report_equal(timebase_to_ns(platform.timebase_hz), 1000000000, "a second in ns");
}
STUB_TEST("timebase", test_timebase, "self", true, "time runs, forwards");

static void test_prng(void)
{
	struct prng a, b;
	uint8_t bytes[16];
	unsigned int n, same = 0;

	prng_seed(&a, 1);
	prng_seed(&b, 1);
	for (n = 0; n < 1000; n++)
		same += prng_next(&a) == prng_next(&b);
	report_equal(same, 1000, "the same seed gives the same numbers");
	prng_seed(&b, 2);
	report(prng_next(&a) != prng_next(&b), "another seed gives others");
	/* Known answers, the same on any machine: what a host must compute. */
	prng_seed(&a, 0);
	report_equal(prng_next(&a), 0x7bbcb40d550682d0ull, "first number of seed 0");
	report_equal(fnv1a("", 0), 0xcbf29ce484222325ull, "FNV-1a of nothing");
	report_equal(fnv1a("a", 1), 0xaf63dc4c8601ec8cull, "FNV-1a of a");
	prng_seed(&a, 7);
	prng_seed(&b, 7);
	prng_fill(&a, bytes, sizeof(bytes));
	report(load_be64(bytes) == prng_next(&b) && load_be64(bytes + 8) == prng_next(&b),
	       "bytes come from the most significant end");
}
STUB_TEST("prng", test_prng, "self", true, "random numbers that can be repeated");

static void test_hcall(void)
{
	struct hcall_regs regs;
	unsigned int n, changed = 0;

	report_code(HCALL(&regs, UNASSIGNED_HCALL, 1, 2, 3), H_FUNCTION,
		    "a call that nobody knows");
	for (n = 7; n <= 12; n++)
		changed += regs.r[n] != HCALL_POISON(n);
	report(!changed && regs.r[4] == 1 && regs.r[6] == 3, "leaves the other registers alone");
	report_code(HCALL(&regs, UNASSIGNED_HCALL | 1), H_FUNCTION, "a number not divisible by 4");
	report_code(HCALL(&regs, ~0ull), H_FUNCTION, "number 2^64 - 1");
	report_code(HCALL(&regs, H_GET_TERM_CHAR, 0xffffffff), H_PARAMETER,
		    "a call of QEMU's own, with a bad unit");
	report_code(HCALL(&regs, H_GET_CPU_CHARACTERISTICS), H_SUCCESS,
		    "a call of QEMU's own, with outputs");
	report(regs.r[4] != HCALL_POISON(4), "gives back r4");
}
STUB_TEST("hcall", test_hcall, "self", true, "registers in and out of a hypercall");

static void test_user(void)
{
	struct hcall_regs regs;
	unsigned int n, changed = 0;

	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	hcall_fill(&regs, H_GET_CPU_CHARACTERISTICS, NULL, 0);
	hcall_raw_user(&regs);
	report_code((int64_t)regs.r[3], H_PRIVILEGE, "a hypercall from problem state");
	for (n = 4; n <= 12; n++)
		changed += regs.r[n] != HCALL_POISON(n);
	report_equal(changed, 0, "changes no other register");
	hcall_fill(&regs, H_GET_CPU_CHARACTERISTICS, NULL, 0);
	hcall_raw(&regs);
	report_code((int64_t)regs.r[3], H_SUCCESS, "the same from supervisor state, afterwards");
}
STUB_TEST("user", test_user, "self smp", true, "problem state");

static void illegal_instruction(void *arg)
{
	(void)arg;
	asm volatile(".long 0");
}

static void trap_instruction(void *arg)
{
	(void)arg;
	asm volatile("trap");
}

static void system_call(void *arg)
{
	(void)arg;
	asm volatile("li 0,0; sc" : : : "r0");
}

static void load_from(void *arg)
{
	(void)*(volatile uint64_t *)arg;
}

static void no_exception(void *arg)
{
	(*(unsigned int *)arg)++;
}

static void test_exception(void)
{
	unsigned int ran = 0;
	uint64_t vector;

	report_equal(exception_try(trap_instruction, NULL), VECTOR_PROGRAM, "trap is caught");
	report(this_cpu->frame.msr & 0x20000, "SRR1 says that it was a trap");
	report_equal(exception_try(illegal_instruction, NULL) & ~0x740ull, 0,
		     "an illegal instruction is caught (0x700, or 0xe40)");
	report_equal(exception_try(system_call, NULL), VECTOR_SYSTEM_CALL, "sc is caught");
	report_equal(exception_try(no_exception, &ran), 0, "no exception is none");
	report_equal(ran, 1, "and the function ran");
	report_equal(exception_try(trap_instruction, NULL), VECTOR_PROGRAM, "trap, once more");
	/* With translation off QEMU answers with a machine check. */
	vector = exception_try(load_from, (void *)(1ull << 56));
	report(vector == VECTOR_MACHINE_CHECK || vector == VECTOR_DATA_STORAGE,
	       "a load from nowhere is caught, as 0x%lx", vector);
	report_equal(this_cpu->frame.dar, 1ull << 56, "and its address known");
}
STUB_TEST("exception", test_exception, "self", true, "exceptions are caught");

static void test_crash(void)
{
	report_info("this test ends the run by an exception, on purpose");
	asm volatile("trap");
}
STUB_TEST("crash", test_crash, "crash", false, "an unexpected exception ends the run, told");

static void test_fail(void)
{
	report(false, "a check that fails, on purpose");
}
STUB_TEST("fail", test_fail, "crash", false, "a failing check shows in the exit status");

#define SMP_ROUNDS 1000

struct smp_state {
	struct spinlock lock;
	struct barrier barrier;
	unsigned int count;
	volatile uint64_t atomic, locked;
	uint64_t seen_by[MAX_CPUS];
	unsigned int index_wrong;
	volatile uint64_t slot[MAX_CPUS];
	volatile uint64_t stale;
};

static void smp_work(void *arg, unsigned int index)
{
	struct smp_state *state = arg;
	struct hcall_regs regs;
	unsigned int n, m;

	if (index != this_cpu->index)
		__atomic_add_fetch(&state->index_wrong, 1, __ATOMIC_SEQ_CST);
	for (n = 0; n < SMP_ROUNDS; n++) {
		atomic_add(&state->atomic, 1);
		spin_lock(&state->lock);
		state->locked++;
		spin_unlock(&state->lock);
		if (n % 50)
			continue;
		/* What each wrote before the barrier, all see after it. */
		state->slot[index] = n + 1;
		barrier_wait(&state->barrier, state->count);
		for (m = 0; m < state->count; m++) {
			if (state->slot[m] != n + 1)
				atomic_add(&state->stale, 1);
		}
		barrier_wait(&state->barrier, state->count);
	}
	for (n = 0; n < 100; n++)
		state->seen_by[index] +=
			HCALL(&regs, H_GET_CPU_CHARACTERISTICS) == H_SUCCESS;
}

static void user_work(void *arg, unsigned int index)
{
	int64_t *status = arg;
	struct hcall_regs regs;

	mmu_enter_process();
	hcall_fill(&regs, H_GET_CPU_CHARACTERISTICS, NULL, 0);
	hcall_raw_user(&regs);
	status[index] = (int64_t)regs.r[3];
}

static void test_smp(void)
{
	static struct smp_state state;
	static int64_t status[MAX_CPUS];
	unsigned int n, round, count = smp_count();

	if (count < 2) {
		report_skip("one CPU: start QEMU with -smp 4");
		return;
	}
	for (round = 0; round < 3; round++) {
		memset(&state, 0, sizeof(state));
		state.count = count;
		if (!report(smp_run(count, smp_work, &state), "%u CPUs run, round %u", count,
			    round))
			return;
		report_equal(state.atomic, (uint64_t)count * SMP_ROUNDS, "atomic counter");
		report_equal(state.locked, (uint64_t)count * SMP_ROUNDS, "counter in a lock");
		report_equal(state.index_wrong + state.stale, 0, "indices and barriers");
		for (n = 0; n < count; n++)
			report_equal(state.seen_by[n], 100, "hypercalls of CPU %u", n);
	}
	if (!mmu_enable_radix())
		return;
	report(smp_run(count, user_work, status), "all enter problem state");
	for (n = 0; n < count; n++)
		report_code(status[n], H_PRIVILEGE, "hypercall of CPU %u from it", n);
}
STUB_TEST("smp", test_smp, "self smp", true, "several CPUs, locks, barriers");
