// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * UV_SHARE_PAGE, UV_UNSHARE_PAGE and UV_UNSHARE_ALL_PAGES of a secure VM (esm=1), alone
 * and by all CPUs at once, with pages that go out meanwhile. Options:
 *	shift=12|16	log2 of the frames, as the partition's profile says (12)
 *	rounds=N	of all CPUs together (60)
 *	seed=N		which calls (1)
 *	nmi=1		between "# pages ready" and an NMI from the host all stays as it is
 *
 * No call tells what a frame is, but sharing does: a frame that is the VM's own reads
 * zeros then, and one that is shared already stays as it is (docs/pef.md).
 */
#include "console.h"
#include "exception.h"
#include "hcall.h"
#include "platform.h"
#include "prng.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define FRAMES		32u
#define REGION		(FREE_RAM_BASE + 0x400000)
#define UV_PAGE_SHIFT	16
#define MARK_SIZE	16

static unsigned int shift;

static uint64_t gfn(unsigned int frame)
{
	return (REGION >> shift) + frame;
}

static uint8_t *at(unsigned int frame)
{
	return (uint8_t *)REGION + ((uint64_t)frame << shift);
}

static int64_t ask(uint64_t number, uint64_t first, uint64_t count)
{
	struct hcall_regs regs;

	return UCALL(&regs, number, first, count);
}

static int64_t unshare_all(void)
{
	struct hcall_regs regs;
	const uint64_t none[] = { 0 };

	return ucall_args(&regs, UV_UNSHARE_ALL_PAGES, none, 0);
}

/* As the ultravisor asks the hypervisor for it; KVM cannot tell who does. */
static int64_t page_out(uint64_t address)
{
	struct hcall_regs regs;

	return HCALL(&regs, H_SVM_PAGE_OUT, address, 0, UV_PAGE_SHIFT);
}

static void fill(int byte)
{
	memset((void *)REGION, byte, (uint64_t)FRAMES << shift);
}

static bool frame_is(unsigned int frame, int byte)
{
	return memory_is(at(frame), byte, 1ull << shift);
}

/* A bit for each frame that is shared; afterwards all of them are. */
static uint64_t which_are_shared(void)
{
	uint64_t bits = 0;
	unsigned int n;

	fill(0x77);
	ask(UV_SHARE_PAGE, gfn(0), FRAMES);
	for (n = 0; n < FRAMES; n++)
		bits |= (uint64_t)frame_is(n, 0x77) << n;
	return bits;
}

static bool start(void)
{
	if (!platform.is_secure) {
		report_skip("the guest is not secure: esm=1");
		return false;
	}
	shift = (unsigned int)arg_number("shift", 12);
	return report_code(unshare_all(), U_SUCCESS, "nothing is shared");
}

/* -- one CPU ------------------------------------------------------------------------- */

static void bad_ranges(uint64_t number, const char *name)
{
	uint64_t end = platform.ram_end >> shift, all = 1ull << (64 - shift);
	const struct {
		uint64_t first, count;
	} ranges[] = {
		{ end, 1 }, { end - 1, 2 }, { end + 1, 1 }, { 0, end + 1 },
		{ platform.mmio_base >> shift, 1 },
		{ all, 1 }, { all - 1, 1 }, { all - 1, 2 }, { all + gfn(0), 1 },
		{ 1ull << 48, 1 }, { 1ull << 63, 1 }, { ~0ull, 1 }, { ~0ull, 2 },
		{ 0, ~0ull }, { 1, ~0ull }, { gfn(0), ~0ull }, { gfn(0), -gfn(0) },
		{ gfn(0), 1 - gfn(0) }, { gfn(0), 1ull << 63 }, { gfn(0), 1ull << 32 },
		{ gfn(0), all }, { gfn(0), all + 1 }, { ~0ull, ~0ull },
	};
	unsigned int n;

	for (n = 0; n < sizeof(ranges) / sizeof(ranges[0]); n++)
		report_code(ask(number, ranges[n].first, ranges[n].count), U_P2,
			    "%s of 0x%lx + 0x%lx", name, ranges[n].first, ranges[n].count);
	/* No frames are none, wherever. */
	report_code(ask(number, 0, 0), U_SUCCESS, "%s of none", name);
	report_code(ask(number, gfn(0), 0), U_SUCCESS, "%s of none within memory", name);
	report_code(ask(number, end, 0), U_SUCCESS, "%s of none behind memory", name);
	report_code(ask(number, ~0ull, 0), U_SUCCESS, "%s of none at the very end", name);
}

static void test_secure_ranges(void)
{
	const uint64_t third = 0x49249249;	/* frames 0, 3, 6, ... */
	unsigned int n, wrong = 0;

	if (!start())
		return;
	for (n = 0; n < FRAMES; n += 3)
		wrong += ask(UV_SHARE_PAGE, gfn(n), 1) != U_SUCCESS;
	report_equal(wrong, 0, "every third frame is shared");
	fill(0x5e);
	bad_ranges(UV_SHARE_PAGE, "UV_SHARE_PAGE");
	bad_ranges(UV_UNSHARE_PAGE, "UV_UNSHARE_PAGE");
	report(memory_is((void *)REGION, 0x5e, (uint64_t)FRAMES << shift),
	       "and all of memory is as it was");
	report_equal(which_are_shared(), third, "and so is what is shared");
	report_code(unshare_all(), U_SUCCESS, "all is taken back");
	report(memory_is((void *)REGION, 0, (uint64_t)FRAMES << shift), "and reads zeros");
	report_equal(which_are_shared(), 0, "nothing was shared any more");
}
STUB_TEST("secure_ranges", test_secure_ranges, "secure_guest secure_pages", false,
	  "frames that are no memory, and none");

static void test_secure_sharing(void)
{
	unsigned int per_page = 1u << (UV_PAGE_SHIFT - shift), page = 2 * per_page;
	unsigned int n, kept = 0;

	if (!start())
		return;
	page = page + 3 < FRAMES ? page : 2;
	fill(0x21);
	report_code(ask(UV_SHARE_PAGE, gfn(3), 2), U_SUCCESS, "two frames are shared");
	report(frame_is(3, 0) && frame_is(4, 0), "they read zeros");
	report(frame_is(2, 0x21) && frame_is(5, 0x21), "their neighbours are as they were");
	fill(0x22);
	report_code(ask(UV_SHARE_PAGE, gfn(2), 3), U_SUCCESS, "and again, with another");
	report(frame_is(2, 0), "which reads zeros");
	report(frame_is(3, 0x22) && frame_is(4, 0x22), "what was shared is as it was");
	report_code(ask(UV_UNSHARE_PAGE, gfn(3), 3), U_SUCCESS, "some are taken back");
	report(frame_is(3, 0) && frame_is(4, 0), "and read zeros");
	report(frame_is(5, 0x22), "but not what was the VM's own");
	report_equal(which_are_shared(), 1u << 2, "one is still shared");
	report_code(unshare_all(), U_SUCCESS, "all is taken back");

	fill(0x23);
	report_code(page_out((uint64_t)at(page)), H_SUCCESS, "a page goes out");
	report_code(page_out((uint64_t)at(page)), H_SUCCESS, "it is out already");
	report_code(ask(UV_UNSHARE_PAGE, gfn(page), 1), U_SUCCESS, "UNSHARE of what is out");
	report(frame_is(page, 0x23), "does not lose it");
	report_code(page_out((uint64_t)at(page)), H_SUCCESS, "it goes out again");
	report_code(ask(UV_SHARE_PAGE, gfn(page + 1), 1), U_SUCCESS, "SHARE of a part of it");
	report(frame_is(page + 1, 0), "which reads zeros");
	for (n = 0; n < FRAMES; n++)
		kept += n != page + 1 && frame_is(n, 0x23);
	report_equal(kept, FRAMES - 1, "and all else is as it was");
	/* H_SVM_PAGE_OUT of what is not secure: "out already", as KVM has it. */
	if (per_page == 1)
		report_code(page_out((uint64_t)at(page + 1)), H_SUCCESS,
			    "a shared page does not go out");
	report_equal(which_are_shared(), 1u << (page + 1), "one is shared");
	report_code(unshare_all(), U_SUCCESS, "all is taken back");
}
STUB_TEST("secure_sharing", test_secure_sharing, "secure_guest secure_pages", false,
	  "what frames read when they are shared and taken back");

/* -- all CPUs ------------------------------------------------------------------------ */

enum what { SHARE, UNSHARE, UNSHARE_ALL, PAGE_OUT };
enum frame_state { OWN, SHARED, EITHER };

struct step {
	enum what what;
	unsigned int first, count;
	int64_t code;
};

static struct {
	struct barrier barrier;
	unsigned int count, rounds;
	uint64_t seed;
	struct step steps[MAX_CPUS];
	enum frame_state states[FRAMES];
	uint64_t torn, wrong, refused, seen[4];
} run;

static void choose(struct step *step, unsigned int round, unsigned int cpu)
{
	uint64_t number;
	struct prng prng;

	prng_seed(&prng, run.seed + ((uint64_t)cpu << 40) + ((uint64_t)round << 8));
	number = prng_below(&prng, 16);
	step->what = number < 6 ? SHARE : number < 11 ? UNSHARE : number < 15 ? PAGE_OUT :
								   UNSHARE_ALL;
	step->first = (unsigned int)prng_below(&prng, FRAMES);
	step->count = 1 + (unsigned int)prng_below(&prng, FRAMES - step->first);
}

static void carry_out(struct step *step)
{
	switch (step->what) {
	case SHARE:
		step->code = ask(UV_SHARE_PAGE, gfn(step->first), step->count);
		break;
	case UNSHARE:
		step->code = ask(UV_UNSHARE_PAGE, gfn(step->first), step->count);
		break;
	case UNSHARE_ALL:
		step->code = unshare_all();
		break;
	case PAGE_OUT:
		step->code = page_out((uint64_t)at(step->first));
		break;
	}
}

static bool touches(const struct step *step, enum what what, unsigned int frame)
{
	if (step->what == UNSHARE_ALL)
		return what == UNSHARE;
	return step->what == what && frame >= step->first && frame < step->first + step->count;
}

/*
 * Calls of several CPUs are carried out one after the other in an order that nobody
 * knows. A frame that was only shared is shared; with calls of both kinds it is either,
 * and was zeroed in any case.
 */
static void judge_frame(unsigned int frame, int byte)
{
	enum frame_state before = run.states[frame], *state = &run.states[frame];
	bool share = false, unshare = false, is_zero, is_kept;
	unsigned int cpu;

	for (cpu = 0; cpu < run.count; cpu++) {
		share |= touches(&run.steps[cpu], SHARE, frame);
		unshare |= touches(&run.steps[cpu], UNSHARE, frame);
	}
	if (share || unshare)
		*state = share && unshare ? EITHER : share ? SHARED : OWN;
	is_zero = frame_is(frame, 0);
	is_kept = frame_is(frame, byte);
	run.torn += !is_zero && !is_kept;
	if (share && unshare)
		run.wrong += !is_zero;
	else if (before != EITHER)
		run.wrong += *state == before ? !is_kept : !is_zero;
	else if (!share && !unshare)
		run.wrong += !is_kept;
}

static void judge(int byte)
{
	unsigned int n;

	for (n = 0; n < run.count; n++) {
		const struct step *step = &run.steps[n];

		run.seen[step->what]++;
		/* A page of which a part is shared cannot go out. */
		run.refused += step->code != U_SUCCESS &&
			       !(step->what == PAGE_OUT && step->code == H_PARAMETER);
	}
	for (n = 0; n < FRAMES; n++)
		judge_frame(n, byte);
}

static void share_at_once(void *arg, unsigned int index)
{
	unsigned int round;

	(void)arg;
	for (round = 1; round <= run.rounds; round++) {
		int byte = (int)(round % 255) + 1;

		if (index == 0)
			fill(byte);
		choose(&run.steps[index], round, index);
		barrier_wait(&run.barrier, run.count);
		carry_out(&run.steps[index]);
		barrier_wait(&run.barrier, run.count);
		if (index == 0)
			judge(byte);
		barrier_wait(&run.barrier, run.count);
	}
}

/* The host's NMI goes to all CPUs, the stopped ones too; so all of them run, and expect it. */
static volatile uint64_t waiting;

static void wait_for_nmi(void *arg)
{
	(void)arg;
	atomic_add(&waiting, 1);
	for (;;)
		cpu_relax();
}

static void make_mark(char mark[MARK_SIZE + 1], unsigned int frame)
{
	memset(mark, 0, MARK_SIZE + 1);
	format_text(mark, MARK_SIZE + 1, "<stub frame %02u>", frame);
}

static void put_marks(void)
{
	char mark[MARK_SIZE + 1];
	unsigned int n, offset;

	for (n = 0; n < FRAMES; n++) {
		make_mark(mark, n);
		for (offset = 0; offset < 1u << shift; offset += MARK_SIZE)
			memcpy(at(n) + offset, mark, MARK_SIZE);
	}
}

static bool has_marks(unsigned int frame)
{
	char mark[MARK_SIZE + 1];
	unsigned int offset = 0;

	make_mark(mark, frame);
	while (offset < 1u << shift && !memcmp(at(frame) + offset, mark, MARK_SIZE))
		offset += MARK_SIZE;
	return offset == 1u << shift;
}

static void mark_and_wait(void *arg)
{
	(void)arg;
	while (waiting != run.count - 1)
		cpu_relax();
	/* The marks come last, and the last one is shared: the host waits until it is there. */
	report_info("pages ready base=0x%lx shift=%u frames=%u", (uint64_t)REGION, shift, FRAMES);
	put_marks();
	wait_for_nmi(NULL);
}

static void wait_for_host(void *arg, unsigned int index)
{
	((uint64_t *)arg)[index] = exception_try(index ? wait_for_nmi : mark_and_wait, NULL);
}

static void check_host_view(void)
{
	uint64_t vectors[MAX_CPUS] = { 0 };
	unsigned int n, kept = 0;

	report_code(unshare_all(), U_SUCCESS, "all is taken back");
	for (n = 1; n < FRAMES; n += 2)
		ask(UV_SHARE_PAGE, gfn(n), 1);
	report(smp_wait() && smp_run(run.count, wait_for_host, vectors), "all CPUs wait");
	for (n = 0; n < run.count; n++)
		report_equal(vectors[n], VECTOR_SYSTEM_RESET, "until the host goes on");
	for (n = 0; n < FRAMES; n++)
		kept += has_marks(n);
	report_equal(kept, FRAMES, "all frames are as they were");
	report_equal(which_are_shared(), 0xaaaaaaaa, "and every other one is shared");
}

static void test_secure_cpus(void)
{
	uint64_t shared, expected = 0, known = 0;
	unsigned int n;

	if (!start())
		return;
	memset(&run, 0, sizeof(run));
	run.count = smp_count();
	run.rounds = (unsigned int)arg_number("rounds", 60);
	run.seed = arg_number("seed", 1);
	report(run.count > 1, "%u CPUs are there", run.count);
	report(smp_run(run.count, share_at_once, NULL), "they share, all at once");
	report_equal(run.refused, 0, "no call was refused");
	report_equal(run.torn, 0, "no frame was zeroed in part");
	report_equal(run.wrong, 0, "frames read what they must");
	report_info("shared=%lu unshared=%lu all=%lu out=%lu", run.seen[SHARE],
		    run.seen[UNSHARE], run.seen[UNSHARE_ALL], run.seen[PAGE_OUT]);
	report(run.seen[SHARE] && run.seen[UNSHARE] && run.seen[UNSHARE_ALL] &&
	       run.seen[PAGE_OUT], "calls of all kinds were made");
	for (n = 0; n < FRAMES; n++) {
		known |= (uint64_t)(run.states[n] != EITHER) << n;
		expected |= (uint64_t)(run.states[n] == SHARED) << n;
	}
	shared = which_are_shared();
	report_equal(shared & known, expected, "what is shared is what was shared last");
	if (arg_number("nmi", 0))
		check_host_view();
	report_code(unshare_all(), U_SUCCESS, "all is taken back");
}
STUB_TEST("secure_cpus", test_secure_cpus, "secure_guest secure_pages", false,
	  "several CPUs share and take back the same frames");
