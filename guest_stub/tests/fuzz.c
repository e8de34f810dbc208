// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Random calls, from a seed. The guest and QEMU must live, the keystore must answer
 * afterwards, and nothing may be written where no argument points. Options:
 *	seed=N count=N		(1, 2000)
 *	cpus=N			on several CPUs at once; only one CPU gives the same calls
 *				again for the same seed, since codes depend on the order
 *	tpm=1			H_TPM_COMM too
 *
 * An address that a call may write to is never below FREE_RAM_BASE: the guest itself is
 * there. All RAM above is fair game, and its contents are lost.
 */
#include "console.h"
#include "pks.h"
#include "prng.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define ARENA_SIZE	0x400000ull	/* of each CPU, from FREE_RAM_BASE on */
#define MAX_CODES	64
#define LABELS		16
#define REAL_MASK	0x0fffffffffffffffull
#define MAX_WRITTEN	512	/* objects that each CPU removes again */

/* An object with one of these could not be removed in this boot. */
#define LASTING_POLICIES (PKS_POLICY_IMMUTABLE | PKS_POLICY_OSSECBOOTAUDIT |	\
			  PKS_POLICY_OSSECBOOTENFORCE)

struct candidate {
	uint64_t number;
	unsigned int count;
	bool served;
};

#define CANDIDATE(name, number, level, count, served) { (level) == 1 ? (number) : 0, (count), (served) },
static const struct candidate candidates[] = { HCALL_CALLS(CANDIDATE) };
#define CANDIDATE_COUNT (sizeof(candidates) / sizeof(candidates[0]))

/* Numbers without a meaning, in and beside the families. */
static const uint64_t gaps[] = { 0x428, 0x440, 0x444, 0x48c, 0x498, 0x49c, 0x4a0, 0xef18, 0xef1c,
				 0xfff0 };

/* Which register holds an address that the call writes to. */
static const struct {
	uint64_t number;
	unsigned int out_register;
} outputs[] = {
	{ H_PKS_GET_CONFIG, 4 }, { H_PKS_GEN_PASSWORD, 6 }, { H_PKS_READ_OBJECT, 7 },
	{ H_PKS_GEN_KEY, 8 }, { H_PKS_WRAP_OBJECT, 10 }, { H_PKS_UNWRAP_OBJECT, 8 },
	{ H_TPM_COMM, 7 },
};

static struct fuzz_cpu {
	struct prng prng;
	uint64_t count;
	uint8_t *arena;
	struct pks_label label;
	uint8_t auth[4096] __attribute__((aligned(4096)));
	struct {
		int64_t code;
		uint64_t count;
	} codes[MAX_CODES];
	unsigned int code_count;
	uint64_t other_codes;
	uint64_t blob, blob_size;	/* where WRAP last left something */
	uint64_t wrapped, unwrapped;	/* how often that went well */
	struct written {
		uint8_t consumer, size;
		uint8_t label[PKS_MAX_LABEL_SIZE];
	} written[MAX_WRITTEN], now;
	unsigned int written_count;
} fuzz[MAX_CPUS];

extern const uint8_t __image_start[], __text_end[];

static uint64_t wild_number(struct prng *prng)
{
	uint64_t bit = 1ull << prng_below(prng, 64);

	switch (prng_below(prng, 6)) {
	case 0:
		return prng_below(prng, 17);
	case 1:
		return prng_below(prng, 70000);
	case 2:
		return bit;
	case 3:
		return bit - 1;
	case 4:
		return bit + 1;
	default:
		return prng_next(prng);
	}
}

static uint64_t wild_address(struct fuzz_cpu *f)
{
	struct prng *prng = &f->prng;

	switch (prng_below(prng, 8)) {
	case 0:
		return platform.ram_end - prng_below(prng, 8192);
	case 1:
		return platform.ram_end + prng_below(prng, 1ull << 34);
	case 2:
		return platform.mmio_base + prng_below(prng, 1ull << 32);
	case 3:
		return -prng_below(prng, 70000);
	case 4:	/* near the end of a page */
		return (uintptr_t)f->arena + PAGE_SIZE * (1 + prng_below(prng, 64)) -
		       prng_below(prng, 600);
	default:
		return (uintptr_t)f->arena + prng_below(prng, ARENA_SIZE / 2);
	}
}

static uint64_t random_auth(struct fuzz_cpu *f)
{
	struct prng *prng = &f->prng;
	unsigned int consumer = 1 + (unsigned int)prng_below(prng, PKS_CONSUMERS);
	uint16_t size;
	const uint8_t *password = pks_password(consumer, &size);

	pks_auth_fill(f->auth, consumer, password, size);
	if (!prng_below(prng, 6))
		f->auth[prng_below(prng, PKS_AUTH_HEADER_SIZE + size)] ^=
			(uint8_t)(1 << prng_below(prng, 8));
	return (uintptr_t)f->auth + (prng_below(prng, 20) ? 0 : prng_below(prng, 64));
}

static uint64_t random_label(struct fuzz_cpu *f)
{
	struct prng *prng = &f->prng;
	char name[16];

	format_text(name, sizeof(name), "fuzz%lu", prng_below(prng, LABELS));
	pks_label_set(&f->label, f->auth[PKS_AUTH_CONSUMER], name);
	if (!prng_below(prng, 8))
		f->label.bytes[prng_below(prng, f->label.size)] ^=
			(uint8_t)(1 << prng_below(prng, 8));
	return (uintptr_t)f->label.bytes;
}

/* What WRAP gave, of which every fourth has a bit altered. */
static void plausible_unwrap(struct fuzz_cpu *f, uint64_t buffer, uint64_t *args)
{
	struct prng *prng = &f->prng;

	memset(&args[1], 0, 8 * sizeof(*args));
	args[2] = f->blob_size ? f->blob : buffer;
	args[3] = f->blob_size ? f->blob_size : PKS_WRAP_OVERHEAD + prng_below(prng, 2048);
	if (f->blob_size && !prng_below(prng, 4))
		((uint8_t *)f->blob)[prng_below(prng, f->blob_size)] ^=
			(uint8_t)(1 << prng_below(prng, 8));
	args[4] = buffer + ARENA_SIZE / 4;
	args[5] = prng_below(prng, 4) ? 65536 : prng_below(prng, 2048);
}

/* A signed update of some variable, with a few bytes altered. */
static void plausible_update(struct fuzz_cpu *f, uint64_t buffer, uint64_t *args)
{
	static const struct {
		const char *name;
		unsigned int size;
	} names[] = { { "P\0K", 4 }, { "K\0E\0K", 6 }, { "d\0b", 4 }, { "s\0b\0a\0t", 8 } };
	struct prng *prng = &f->prng;
	unsigned int n = (unsigned int)prng_below(prng, sizeof(names) / sizeof(names[0]));
	uint8_t *message = (uint8_t *)buffer;

	f->auth[PKS_AUTH_CONSUMER] = prng_below(prng, 8) ? PKS_CONSUMER_OS :
							    f->auth[PKS_AUTH_CONSUMER];
	pks_variable_label(&f->label, names[n].name, names[n].size);
	args[2] = f->label.size;
	args[3] = PKS_POLICY_SIGNEDUPDATE | (prng_below(prng, 2) ? PKS_POLICY_WORLDREADABLE : 0);
	args[4] = prng_below(prng, 2);
	args[5] = buffer;
	args[6] = PKS_MESSAGE_SIZE;
	pks_message_fill(message);
	for (n = (unsigned int)prng_below(prng, 4); n; n--)
		message[prng_below(prng, PKS_MESSAGE_SIZE)] ^= (uint8_t)(1 << prng_below(prng, 8));
}

/* Arguments that a well-meaning caller could pass; zero where the call has no more. */
static void plausible(struct fuzz_cpu *f, uint64_t number, uint64_t *args)
{
	struct prng *prng = &f->prng;
	uint64_t buffer = (uintptr_t)f->arena + prng_below(prng, ARENA_SIZE / 4);
	uint64_t size = prng_below(prng, 4) ? prng_below(prng, 2048) : prng_below(prng, 65537);

	memset(args, 0, 9 * sizeof(*args));
	if (number == H_PKS_GET_CONFIG) {
		args[0] = buffer;
		args[1] = size;
		return;
	}
	if (number == H_PKS_GEN_PASSWORD || number == H_PKS_SET_PASSWORD) {
		args[0] = 1 + prng_below(prng, PKS_CONSUMERS);
		args[2] = buffer & ~(PAGE_SIZE - 1);
		args[3] = PKS_MIN_PASSWORD_SIZE + prng_below(prng, 256);
		return;
	}
	args[0] = random_auth(f);
	args[1] = random_label(f);
	args[2] = f->label.size;
	if (number == H_PKS_READ_OBJECT) {
		args[3] = buffer;
		args[4] = prng_below(prng, 4) ? 65535 : size;
		return;
	}
	if (number == H_PKS_UNWRAP_OBJECT) {
		plausible_unwrap(f, buffer, args);
		return;
	}
	args[3] = prng_below(prng, 4) ? 0 : prng_next(prng) & 0x7f800008;
	if (number == H_PKS_WRAP_OBJECT)
		args[3] = PKS_WRAP_DEFAULT | prng_below(prng, 3) << 61;
	if (number == H_PKS_SIGNED_UPDATE) {
		plausible_update(f, buffer, args);
		return;
	}
	if (number == H_PKS_GEN_KEY && prng_below(prng, 2)) {
		args[3] = PKS_POLICY_WRAPPINGKEY;
		size = PKS_WRAPPING_KEY_SIZE;
	}
	args[4] = buffer;
	args[5] = size;
	args[6] = buffer + ARENA_SIZE / 4;
	args[7] = size + 1024;
}

static uint64_t choose_number(struct prng *prng)
{
	const struct candidate *c;

	switch (prng_below(prng, 20)) {
	case 0:
		return gaps[prng_below(prng, sizeof(gaps) / sizeof(gaps[0]))];
	case 1:
		c = &candidates[prng_below(prng, CANDIDATE_COUNT)];
		return c->number + 1 + prng_below(prng, 3);
	case 2:
		c = &candidates[prng_below(prng, CANDIDATE_COUNT)];
		return c->number | 1ull << (32 + prng_below(prng, 32));
	default:
		do {
			c = &candidates[prng_below(prng, CANDIDATE_COUNT)];
			/* QEMU says on its stderr each time that it has no TPM proxy. */
		} while (!c->number || (!c->served && prng_below(prng, 4)) ||
			 (c->number == H_TPM_COMM && !arg_number("tpm", 0)));
		return c->number;
	}
}

/* Keep the guest out of the way of what the call may write. */
static void protect(const struct fuzz_cpu *f, uint64_t number, uint64_t *args)
{
	unsigned int n;

	if ((number == H_PKS_WRITE_OBJECT || number == H_PKS_GEN_KEY) &&
	    args[3] & LASTING_POLICIES)
		args[3] |= PKS_POLICY_TRANSIENT;
	for (n = 0; n < sizeof(outputs) / sizeof(outputs[0]); n++) {
		uint64_t *address = &args[outputs[n].out_register - 4];

		if (outputs[n].number == number && (*address & REAL_MASK) < FREE_RAM_BASE)
			*address = (uintptr_t)f->arena + (*address & 0xfff);
	}
}

static bool in_ram(uint64_t address, uint64_t size)
{
	return address <= platform.ram_end && size <= platform.ram_end - address;
}

/* What a WRITE or GEN_KEY names, as long as its memory still says so. */
static void note_write(struct fuzz_cpu *f, uint64_t number, const uint64_t *args)
{
	uint64_t auth = args[0] & REAL_MASK, label = args[1] & REAL_MASK;

	f->now.size = 0;
	if ((number != H_PKS_WRITE_OBJECT && number != H_PKS_GEN_KEY) ||
	    args[2] > PKS_MAX_LABEL_SIZE || !in_ram(auth, PKS_AUTH_HEADER_SIZE) ||
	    !in_ram(label, args[2]))
		return;
	f->now.consumer = ((const uint8_t *)auth)[PKS_AUTH_CONSUMER];
	f->now.size = (uint8_t)args[2];
	memcpy(f->now.label, (const void *)label, args[2]);
}

static void count_code(struct fuzz_cpu *f, int64_t code)
{
	unsigned int n;

	for (n = 0; n < f->code_count; n++) {
		if (f->codes[n].code == code) {
			f->codes[n].count++;
			return;
		}
	}
	if (n == MAX_CODES) {
		f->other_codes++;
		return;
	}
	f->codes[n].code = code;
	f->codes[n].count = 1;
	f->code_count++;
}

static void fuzz_work(void *arg, unsigned int index)
{
	struct fuzz_cpu *f = &fuzz[index];
	struct prng *prng = &f->prng;
	struct hcall_regs regs;
	uint64_t n, args[9], number;
	unsigned int r;

	(void)arg;
	for (n = 0; n < f->count; n++) {
		number = choose_number(prng);
		plausible(f, number, args);
		for (r = 0; r < 9; r++) {
			if (prng_below(prng, 16))
				continue;
			args[r] = prng_below(prng, 2) ? wild_number(prng) : wild_address(f);
		}
		protect(f, number, args);
		hcall_fill(&regs, number, args, 9);
		note_write(f, number, args);
		hcall_raw(&regs);
		count_code(f, (int64_t)regs.r[3]);
		if (f->now.size && (int64_t)regs.r[3] == H_SUCCESS &&
		    f->written_count < MAX_WRITTEN)
			f->written[f->written_count++] = f->now;
		if (number == H_PKS_WRAP_OBJECT && (int64_t)regs.r[3] == H_SUCCESS) {
			f->blob = args[6] & REAL_MASK;
			f->blob_size = regs.r[5];
			f->wrapped++;
		}
		f->unwrapped += number == H_PKS_UNWRAP_OBJECT &&
				(int64_t)regs.r[3] == H_SUCCESS;
	}
}

static uint64_t image_checksum(void)
{
	/* Code and the vectors; data and .bss change as we run. */
	return fnv1a(__image_start, (size_t)(__text_end - __image_start)) ^
	       fnv1a((const void *)0x100, 0x1700);
}

static void tell(unsigned int index)
{
	struct fuzz_cpu *f = &fuzz[index];
	unsigned int n;

	for (n = 0; n < f->code_count; n++) {
		const char *name = hcall_code_name(f->codes[n].code);

		console_printf("# fuzz cpu=%u %s(%ld)=%lu\n", index, name ? name : "?",
			       (long)f->codes[n].code, f->codes[n].count);
		report(name != NULL, "the table has code %ld", (long)f->codes[n].code);
	}
	console_printf("# fuzz cpu=%u wrapped=%lu unwrapped=%lu\n", index, f->wrapped,
		       f->unwrapped);
	report_equal(f->other_codes, 0, "codes are few");
}

/* Some were removed by a call already; none may stay. */
static void remove_objects(unsigned int index)
{
	static struct pks_label label;
	struct fuzz_cpu *f = &fuzz[index];
	unsigned int n;

	for (n = 0; n < f->written_count; n++) {
		const struct written *w = &f->written[n];

		memcpy(label.bytes, w->label, w->size);
		label.size = w->size;
		pks_remove(w->consumer, &label);
	}
}

static void test_fuzz(void)
{
	uint64_t seed = arg_number("seed", 1), count = arg_number("count", 2000);
	uint64_t cpu_count = arg_number("cpus", 1), before;
	struct pks_config config;
	unsigned int n;

	if (!cpu_count || cpu_count > smp_count() ||
	    platform.ram_end < FREE_RAM_BASE + (cpu_count + 1) * ARENA_SIZE) {
		report(false, "cpus=%lu is not to be had", cpu_count);
		return;
	}
	if (platform_has_hypertas("hcall-pks") && !pks_open())
		return;
	for (n = 0; n < cpu_count; n++) {
		struct fuzz_cpu *f = &fuzz[n];

		memset(f, 0, sizeof(*f));
		prng_seed(&f->prng, seed + n);
		f->count = count;
		f->arena = (uint8_t *)(FREE_RAM_BASE + n * ARENA_SIZE);
	}
	report_info("seed=%lu count=%lu cpus=%lu", seed, count, cpu_count);
	before = image_checksum();
	report(smp_run((unsigned int)cpu_count, fuzz_work, NULL), "survived %lu calls",
	       count * cpu_count);
	report_equal(image_checksum(), before, "the guest's code is as it was");
	for (n = 0; n < cpu_count; n++)
		tell(n);
	if (!platform_has_hypertas("hcall-pks"))
		return;
	report_code(pks_get_config(&config), H_SUCCESS, "the keystore answers");
	report(config.usedspace <= config.totalsize, "no more is used than there is");
	for (n = 0; n < cpu_count; n++)
		remove_objects(n);
}
STUB_TEST("fuzz", test_fuzz, "fuzz", false, "random calls");
