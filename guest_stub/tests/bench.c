// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Times calls by the timebase. One line for each:
 *	# bench NAME n=N min_ns=.. p50_ns=.. p99_ns=..
 * Options: n=N samples (2000), size=BYTES of the object (4096), wrap-size=BYTES of what
 * is wrapped (61440), call=config|object|wrap for one only. call=share is for a secure VM
 * (esm=1) of 4 KiB pages, and shares ranges=N pages before (0), every other one.
 */
#include "console.h"
#include "hcall.h"
#include "pks.h"
#include "platform.h"
#include "string.h"
#include "test.h"
#include "timebase.h"

#define MAX_SAMPLES	100000
#define WARM_UP		50

static uint64_t samples[MAX_SAMPLES], sums[MAX_SAMPLES];
static struct pks_label label;
static unsigned int failures;

static void sift_down(uint64_t *values, size_t from, size_t count)
{
	size_t child;

	while ((child = 2 * from + 1) < count) {
		uint64_t value = values[from];

		if (child + 1 < count && values[child + 1] > values[child])
			child++;
		if (values[child] <= value)
			return;
		values[from] = values[child];
		values[child] = value;
		from = child;
	}
}

static void heap_sort(uint64_t *values, size_t count)
{
	size_t n;

	for (n = count / 2; n-- > 0;)
		sift_down(values, n, count);
	for (n = count; n-- > 1;) {
		uint64_t value = values[0];

		values[0] = values[n];
		values[n] = value;
		sift_down(values, 0, n);
	}
}

static void tell(const char *name, uint64_t *ticks, size_t count)
{
	heap_sort(ticks, count);
	console_printf("# bench %s n=%lu min_ns=%lu p50_ns=%lu p99_ns=%lu\n", name, count,
		       timebase_to_ns(ticks[0]), timebase_to_ns(ticks[count / 2]),
		       timebase_to_ns(ticks[count - 1 - count / 100]));
}

/* The call's time; its arguments and what it does are the caller's. */
static uint64_t time_call(struct hcall_regs *regs, int64_t expected)
{
	uint64_t start = timebase();

	hcall_raw(regs);
	start = timebase() - start;
	failures += (int64_t)regs->r[3] != expected;
	return start;
}

static void bench_call(const char *name, uint64_t number, const uint64_t *args,
		       unsigned int arg_count, size_t count)
{
	struct hcall_regs regs;
	size_t n;

	for (n = 0; n < count + WARM_UP; n++) {
		uint64_t ticks;

		hcall_fill(&regs, number, args, arg_count);
		ticks = time_call(&regs, H_SUCCESS);
		if (n >= WARM_UP)
			samples[n - WARM_UP] = ticks;
	}
	tell(name, samples, count);
}

/* WRITE, READ, REMOVE of one object, again and again, each timed for itself. */
static void bench_object(size_t count, uint64_t size)
{
	static const char *const names[] = { "H_PKS_WRITE_OBJECT", "H_PKS_READ_OBJECT",
					     "H_PKS_REMOVE_OBJECT" };
	static uint64_t each[3][MAX_SAMPLES];
	uint64_t auth = (uintptr_t)pks_auth(PKS_CONSUMER_OS);
	uint64_t name = (uintptr_t)label.bytes;
	struct hcall_regs regs;
	char text[48];
	size_t n;
	unsigned int step;

	for (n = 0; n < count + WARM_UP; n++) {
		size_t at = n < WARM_UP ? 0 : n - WARM_UP;

		hcall_fill(&regs, H_PKS_WRITE_OBJECT,
			   (const uint64_t[]){ auth, name, label.size, 0,
					       (uintptr_t)pks_data, size }, 6);
		each[0][at] = time_call(&regs, H_SUCCESS);
		hcall_fill(&regs, H_PKS_READ_OBJECT,
			   (const uint64_t[]){ auth, name, label.size, (uintptr_t)pks_out,
					       size }, 5);
		each[1][at] = time_call(&regs, H_SUCCESS);
		hcall_fill(&regs, H_PKS_REMOVE_OBJECT,
			   (const uint64_t[]){ auth, name, label.size }, 3);
		each[2][at] = time_call(&regs, H_SUCCESS);
		sums[at] = each[0][at] + each[1][at];
	}
	for (step = 0; step < 3; step++) {
		format_text(text, sizeof(text), "%s_%lu", names[step], size);
		tell(text, each[step], count);
	}
	format_text(text, sizeof(text), "WRITE+READ_%lu", size);
	tell(text, sums, count);
}

/* READ, WRAP and UNWRAP of as many bytes. */
static void bench_wrap(size_t count, uint64_t size)
{
	static struct pks_label key;
	static uint8_t blob[PKS_BUFFER_SIZE] __attribute__((aligned(4096)));
	uint64_t auth = (uintptr_t)pks_auth(PKS_CONSUMER_OS), wrapped = size + PKS_WRAP_OVERHEAD;
	const uint64_t read[] = { auth, (uintptr_t)label.bytes, label.size, (uintptr_t)pks_out,
				  size };
	const uint64_t unwrap[] = { auth, 0, (uintptr_t)blob, wrapped, (uintptr_t)pks_out, size,
				    0 };
	uint64_t wrap[] = { auth, (uintptr_t)key.bytes, 0, PKS_WRAP_DEFAULT, (uintptr_t)pks_data,
			    size, (uintptr_t)blob, wrapped, 0 };
	char text[48];

	pks_label_set(&key, PKS_CONSUMER_OS, "bench-key");
	wrap[2] = key.size;
	pks_remove(PKS_CONSUMER_OS, &key);
	failures += pks_gen_key(PKS_CONSUMER_OS, &key, PKS_POLICY_WRAPPINGKEY, NULL,
				PKS_WRAPPING_KEY_SIZE) != H_SUCCESS;
	failures += pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, size) != H_SUCCESS;
	format_text(text, sizeof(text), "READ_beside_WRAP_%lu", size);
	bench_call(text, H_PKS_READ_OBJECT, read, 5, count);
	format_text(text, sizeof(text), "H_PKS_WRAP_OBJECT_%lu", size);
	bench_call(text, H_PKS_WRAP_OBJECT, wrap, 9, count);
	format_text(text, sizeof(text), "H_PKS_UNWRAP_OBJECT_%lu", size);
	bench_call(text, H_PKS_UNWRAP_OBJECT, unwrap, 7, count);
	pks_remove(PKS_CONSUMER_OS, &label);
	pks_remove(PKS_CONSUMER_OS, &key);
}

#define BENCH_PAGES	((FREE_RAM_BASE + 0x400000) >> 12)

static uint64_t time_ucall(uint64_t number, uint64_t gfn)
{
	struct hcall_regs regs;
	uint64_t start;

	hcall_fill(&regs, number, (const uint64_t[]){ gfn, 1 }, 2);
	start = timebase();
	ucall_raw(&regs);
	start = timebase() - start;
	failures += (int64_t)regs.r[3] != U_SUCCESS;
	return start;
}

/* A page is shared, and taken back, beside those that are shared. */
static void bench_share(size_t count, uint64_t ranges)
{
	uint64_t gfn = BENCH_PAGES + 2 * ranges + 1, range;
	size_t n;

	for (range = 0; range < ranges; range++)
		time_ucall(UV_SHARE_PAGE, BENCH_PAGES + 2 * range);
	for (n = 0; n < count + WARM_UP; n++) {
		size_t at = n < WARM_UP ? 0 : n - WARM_UP;

		samples[at] = time_ucall(UV_SHARE_PAGE, gfn);
		sums[at] = time_ucall(UV_UNSHARE_PAGE, gfn);
	}
	tell("UV_SHARE_PAGE", samples, count);
	tell("UV_UNSHARE_PAGE", sums, count);
}

static bool wanted(const char *name)
{
	const char *only = arg_text("call");

	return !only || !strcmp(only, name);
}

static void test_bench(void)
{
	uint64_t count = arg_number("n", 2000), size = arg_number("size", 4096);

	if (!count || count > MAX_SAMPLES || !size || size > PKS_BUFFER_SIZE) {
		report(false, "n is 1 to %u and size 1 to %u", MAX_SAMPLES, PKS_BUFFER_SIZE);
		return;
	}
	bench_call("H_GET_CPU_CHARACTERISTICS", H_GET_CPU_CHARACTERISTICS, NULL, 0, count);
	report_equal(failures, 0, "a call that QEMU answers itself");
	if (!pks_open())
		return;
	pks_label_set(&label, PKS_CONSUMER_OS, "bench");
	pks_remove(PKS_CONSUMER_OS, &label);
	if (wanted("config") || wanted("share")) {
		const uint64_t args[] = { (uintptr_t)pks_out, PKS_CONFIG_SIZE_6_12 };

		bench_call("H_PKS_GET_CONFIG", H_PKS_GET_CONFIG, args, 2, count);
		report_equal(failures, 0, "GET_CONFIG");
	}
	if (wanted("object")) {
		bench_object(count, size);
		report_equal(failures, 0, "WRITE, READ, REMOVE of %lu bytes", size);
	}
	if (arg_text("call") && wanted("share")) {
		bench_share(count, arg_number("ranges", 0));
		report_equal(failures, 0, "SHARE_PAGE, UNSHARE_PAGE");
	}
	if (wanted("wrap")) {
		size = arg_number("wrap-size", 60 * 1024);
		if (!size || size > 65536) {
			report(false, "wrap-size is 1 to 65536");
			return;
		}
		bench_wrap(count, size);
		report_equal(failures, 0, "READ, WRAP, UNWRAP of %lu bytes", size);
	}
}
STUB_TEST("bench", test_bench, "bench", false, "times calls");
