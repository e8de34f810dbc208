// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All CPUs mix WRITE, READ, REMOVE, CONFIRM and GEN_PASSWORD, each on labels of its own,
 * while the host side may be killed and started again. Each CPU knows what its objects
 * must be, so a call that was executed twice, or not at all, shows; and each call is
 * logged before and after, so that a host can check the same against the store. The log
 * is described in README.md, "The soak log". Options:
 *	seed=N			(1)
 *	seconds=N or ops=N	of each CPU (5 seconds)
 *	pause-ms=N		between calls (0)
 *	aborts=1		H_ABORTED is not a failure; what it left is read back
 *	clean=1			remove all objects at the end
 */
#include "console.h"
#include "pks.h"
#include "prng.h"
#include "smp.h"
#include "string.h"
#include "test.h"
#include "timebase.h"

#define LABELS		8
#define MAX_DATA	4096
#define MAX_TOLD	20	/* violations of each CPU that are told one by one */

enum object_state { ABSENT, PRESENT, UNKNOWN };

struct soak_object {
	struct pks_label label;
	char name[24];
	enum object_state state;
	uint32_t size, policy;
	uint64_t hash;
	bool flushed;		/* the state was confirmed */
};

struct soak_cpu {
	uint8_t data[MAX_DATA] __attribute__((aligned(4096)));
	uint8_t out[MAX_DATA] __attribute__((aligned(4096)));
	uint8_t password[4096] __attribute__((aligned(4096)));
	struct soak_object objects[LABELS];
	struct prng prng;
	unsigned int index, consumer;
	uint64_t seq;
	uint64_t counts[5];	/* W R D C G */
	uint64_t aborted, violations, longest;
	char first_violation[120];
};

enum { OP_WRITE, OP_READ, OP_REMOVE, OP_CONFIRM, OP_GEN_PASSWORD };
static const char op_letters[] = "WRDCG";

static struct soak_cpu soak[MAX_CPUS];

static struct {
	unsigned int cpus;
	uint64_t seed, ops, deadline, pause_ms;
	bool aborts, race;
	uint32_t max_size;
	uint16_t password_size;
	struct barrier barrier;
	volatile uint64_t winners[PKS_CONSUMERS + 1];
} run;

static void violate(struct soak_cpu *s, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void violate(struct soak_cpu *s, const char *format, ...)
{
	char text[sizeof(s->first_violation)];
	va_list args;

	va_start(args, format);
	format_textv(text, sizeof(text), format, args);
	va_end(args);
	if (s->violations < MAX_TOLD)
		console_printf("! %u %lu %s\n", s->index, s->seq, text);
	if (!s->violations++)
		memcpy(s->first_violation, text, sizeof(text));
}

static void begin(struct soak_cpu *s, unsigned int op, const struct soak_object *object)
{
	s->seq++;
	s->counts[op]++;
	if (op == OP_WRITE)
		return;		/* tells more, itself */
	console_printf("> %u %lu %c %u %s\n", s->index, s->seq, op_letters[op], s->consumer,
		       object ? object->name : "-");
}

static void note_time(struct soak_cpu *s, uint64_t start)
{
	uint64_t ticks = timebase() - start;

	if (ticks > s->longest)
		s->longest = ticks;
}

/* True for a code after which nobody knows whether the change was made. */
static bool is_aborted(struct soak_cpu *s, struct soak_object *object, int64_t code)
{
	if (code != H_ABORTED)
		return false;
	s->aborted++;
	if (object)
		object->state = UNKNOWN;
	if (!run.aborts)
		violate(s, "H_ABORTED");
	return true;
}

static void forget(struct soak_object *object)
{
	object->state = ABSENT;
	object->flushed = false;
}

static void do_write(struct soak_cpu *s, struct soak_object *object)
{
	uint32_t size = 1 + (uint32_t)prng_below(&s->prng, run.max_size);
	uint32_t policy = prng_below(&s->prng, 2) ? 0 : PKS_POLICY_WORLDREADABLE;
	struct prng content;
	uint64_t hash, start;
	int64_t code;

	begin(s, OP_WRITE, object);
	/* What a host computes too: seed, CPU and sequence number give the data. */
	prng_seed(&content, run.seed + ((uint64_t)s->index << 56) + (s->seq << 8));
	prng_fill(&content, s->data, size);
	hash = fnv1a(s->data, size);
	console_printf("> %u %lu W %u %s %x %u %016lx\n", s->index, s->seq, s->consumer,
		       object->name, policy, size, hash);
	start = timebase();
	code = pks_write(s->consumer, &object->label, policy, s->data, size);
	note_time(s, start);
	console_printf("< %u %lu W %ld\n", s->index, s->seq, (long)code);
	if (is_aborted(s, object, code))
		return;
	if (object->state == PRESENT) {
		if (code != H_RESOURCE)
			violate(s, "WRITE over %s gave %ld", object->name, (long)code);
		return;
	}
	if (code == H_RESOURCE)
		violate(s, "WRITE of %s was executed twice", object->name);
	else if (code != H_SUCCESS)
		violate(s, "WRITE of %s gave %ld", object->name, (long)code);
	if (code != H_SUCCESS) {
		object->state = UNKNOWN;
		return;
	}
	object->state = PRESENT;
	object->size = size;
	object->policy = policy;
	object->hash = hash;
	object->flushed = false;
}

static void do_read(struct soak_cpu *s, struct soak_object *object)
{
	struct pks_result result;
	uint64_t hash = 0, start;

	begin(s, OP_READ, object);
	start = timebase();
	result = pks_read(s->consumer, &object->label, s->out, sizeof(s->out));
	note_time(s, start);
	if (result.code == H_SUCCESS && result.r4 <= sizeof(s->out))
		hash = fnv1a(s->out, result.r4);
	if (result.code == H_SUCCESS)
		console_printf("< %u %lu R %ld %lx %lu %016lx\n", s->index, s->seq,
			       (long)result.code, result.r5, result.r4, hash);
	else
		console_printf("< %u %lu R %ld\n", s->index, s->seq, (long)result.code);
	if (result.code == H_ABORTED) {
		/* Reading changes nothing: what is known of the object stays true. */
		is_aborted(s, NULL, result.code);
		return;
	}
	if (object->state == UNKNOWN) {
		if (result.code == H_SUCCESS) {
			object->state = PRESENT;
			object->size = (uint32_t)result.r4;
			object->policy = (uint32_t)result.r5;
			object->hash = hash;
			object->flushed = false;
		} else if (result.code == H_NOT_FOUND) {
			forget(object);
		} else {
			violate(s, "READ of %s gave %ld", object->name, (long)result.code);
		}
		return;
	}
	if (object->state == ABSENT) {
		if (result.code != H_NOT_FOUND)
			violate(s, "READ of absent %s gave %ld", object->name,
				(long)result.code);
		return;
	}
	if (result.code != H_SUCCESS)
		violate(s, "READ of %s%s gave %ld", object->flushed ? "flushed " : "",
			object->name, (long)result.code);
	else if (result.r4 != object->size || result.r5 != object->policy ||
		 hash != object->hash)
		violate(s, "READ of %s gave other data", object->name);
}

static void do_remove(struct soak_cpu *s, struct soak_object *object)
{
	uint64_t start;
	int64_t code;

	begin(s, OP_REMOVE, object);
	start = timebase();
	code = pks_remove(s->consumer, &object->label);
	note_time(s, start);
	console_printf("< %u %lu D %ld\n", s->index, s->seq, (long)code);
	if (is_aborted(s, object, code))
		return;
	if (object->state == PRESENT && code == H_NOT_FOUND)
		violate(s, "REMOVE of %s was executed twice", object->name);
	else if (object->state == PRESENT && code != H_SUCCESS)
		violate(s, "REMOVE of %s gave %ld", object->name, (long)code);
	else if (object->state == ABSENT && code != H_NOT_FOUND)
		violate(s, "REMOVE of absent %s gave %ld", object->name, (long)code);
	else if (object->state == UNKNOWN && code != H_SUCCESS && code != H_NOT_FOUND)
		violate(s, "REMOVE of %s gave %ld", object->name, (long)code);
	if (code == H_SUCCESS || code == H_NOT_FOUND)
		forget(object);
}

static void do_confirm(struct soak_cpu *s, struct soak_object *object)
{
	struct pks_result result;
	uint64_t start;
	bool flushed;

	begin(s, OP_CONFIRM, object);
	start = timebase();
	result = pks_confirm(s->consumer, &object->label);
	note_time(s, start);
	console_printf("< %u %lu C %ld %lu\n", s->index, s->seq, (long)result.code, result.r4);
	if (result.code == H_ABORTED) {
		is_aborted(s, NULL, result.code);
		return;
	}
	flushed = (result.r4 & 0xff) == 1;
	if (object->state == UNKNOWN)
		return;
	if (object->state == PRESENT && result.code != H_SUCCESS)
		violate(s, "CONFIRM of %s gave %ld", object->name, (long)result.code);
	/* A removal that is not yet flushed may be told as success with r4 = 0. */
	else if (object->state == ABSENT && result.code != H_NOT_FOUND &&
		 !(result.code == H_SUCCESS && !flushed))
		violate(s, "CONFIRM of absent %s gave %ld, r4 %lu", object->name,
			(long)result.code, result.r4);
	else if (flushed)
		object->flushed = true;
}

/* All passwords are set: a success would be a second one. */
static void do_gen_password(struct soak_cpu *s)
{
	uint64_t start;
	int64_t code;

	begin(s, OP_GEN_PASSWORD, NULL);
	start = timebase();
	code = pks_gen_password(s->consumer, s->password, run.password_size);
	note_time(s, start);
	console_printf("< %u %lu G %ld\n", s->index, s->seq, (long)code);
	if (!is_aborted(s, NULL, code) && code != H_IN_USE)
		violate(s, "GEN_PASSWORD gave %ld, with a password set", (long)code);
}

/* All CPUs want each consumer's password; exactly one must get it. */
static void race_for_passwords(struct soak_cpu *s)
{
	unsigned int own = s->consumer, consumer;

	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		int64_t code;

		s->consumer = consumer;
		barrier_wait(&run.barrier, run.cpus);
		begin(s, OP_GEN_PASSWORD, NULL);
		code = pks_gen_password(consumer, s->password, run.password_size);
		console_printf("< %u %lu G %ld\n", s->index, s->seq, (long)code);
		if (code == H_SUCCESS) {
			if (atomic_add(&run.winners[consumer], 1) == 1)
				pks_keep_password(consumer, s->password, run.password_size);
			else
				violate(s, "consumer %u got two passwords", consumer);
		} else if (!is_aborted(s, NULL, code) && code != H_IN_USE) {
			violate(s, "GEN_PASSWORD gave %ld", (long)code);
		}
		barrier_wait(&run.barrier, run.cpus);
		if (s->index == 0 && !run.winners[consumer])
			violate(s, "GEN_PASSWORD for consumer %u was executed and not told",
				consumer);
	}
	s->consumer = own;
	barrier_wait(&run.barrier, run.cpus);
}

static void one_operation(struct soak_cpu *s)
{
	struct soak_object *object = &s->objects[prng_below(&s->prng, LABELS)];
	uint64_t choice = prng_below(&s->prng, 100);

	if (object->state == UNKNOWN)
		do_read(s, object);
	else if (choice < 35)
		do_write(s, object);
	else if (choice < 60)
		do_read(s, object);
	else if (choice < 80)
		do_remove(s, object);
	else if (choice < 95)
		do_confirm(s, object);
	else
		do_gen_password(s);
}

/* So small that all objects fit at once: then H_NO_MEM can never be right. */
static void share_space(struct soak_cpu *s)
{
	struct pks_config config;
	uint32_t share, overhead;

	if (pks_get_config(&config) != H_SUCCESS) {
		violate(s, "GET_CONFIG failed");
		return;
	}
	share = (config.totalsize - config.usedspace) / (run.cpus * LABELS);
	overhead = config.objoverhead + PKS_LABEL_HEADER_SIZE + sizeof(s->objects[0].name);
	if (share <= overhead) {
		violate(s, "%u of %u bytes are in use: too little is left",
			config.usedspace, config.totalsize);
		return;
	}
	run.max_size = share - overhead < MAX_DATA ? share - overhead : MAX_DATA;
	console_printf("= space total=%u used=%u max_size=%u\n", config.totalsize,
		       config.usedspace, run.max_size);
}

static void soak_work(void *arg, unsigned int index)
{
	struct soak_cpu *s = &soak[index];
	unsigned int n;
	uint64_t op;

	(void)arg;
	if (run.race) {
		race_for_passwords(s);
		if (!run.winners[1] || !run.winners[2] || !run.winners[3])
			return;		/* without passwords there is nothing to do */
	}
	/* What an earlier run left: then all is known. */
	for (n = 0; n < LABELS; n++)
		do_remove(s, &s->objects[n]);
	barrier_wait(&run.barrier, run.cpus);
	if (index == 0)
		share_space(s);
	barrier_wait(&run.barrier, run.cpus);
	if (!run.max_size)
		return;
	for (op = 0; run.ops ? op < run.ops : timebase() < run.deadline; op++) {
		one_operation(s);
		if (run.pause_ms)
			delay_ms(run.pause_ms);
	}
	for (n = 0; n < LABELS; n++) {
		do_read(s, &s->objects[n]);
		do_confirm(s, &s->objects[n]);
	}
	for (n = 0; n < LABELS && arg_number("clean", 0); n++)
		do_remove(s, &s->objects[n]);
}

static bool prepare(void)
{
	struct pks_config config;
	unsigned int n, m;

	if (!pks_announced())
		return false;
	if (!report_code(pks_get_config(&config), H_SUCCESS, "the keystore answers"))
		return false;
	memset(&run, 0, sizeof(run));
	run.cpus = smp_count();
	run.seed = arg_number("seed", 1);
	run.ops = arg_number("ops", 0);
	run.pause_ms = arg_number("pause-ms", 0);
	run.aborts = arg_number("aborts", 0) != 0;
	run.password_size = config.maxpwsize;
	run.race = !pks_has_password(PKS_CONSUMER_OS);
	memset(soak, 0, sizeof(soak));
	for (n = 0; n < run.cpus; n++) {
		struct soak_cpu *s = &soak[n];

		s->index = n;
		s->consumer = 1 + n % PKS_CONSUMERS;
		prng_seed(&s->prng, run.seed + n);
		for (m = 0; m < LABELS; m++) {
			struct soak_object *object = &s->objects[m];

			format_text(object->name, sizeof(object->name), "soak-%u-%u", n, m);
			pks_label_set(&object->label, s->consumer, object->name);
			object->state = UNKNOWN;
		}
	}
	/* The race and the removals count, too. */
	run.deadline = timebase() + timebase_from_ms(1000 * arg_number("seconds", 5));
	return true;
}

static void test_soak(void)
{
	unsigned int n;

	if (!prepare())
		return;
	console_printf("= soak seed=%lu cpus=%u labels=%u race=%u\n", run.seed, run.cpus, LABELS,
		       run.race);
	report(smp_run(run.cpus, soak_work, NULL), "%u CPUs ran", run.cpus);
	for (n = 0; n < run.cpus; n++) {
		const struct soak_cpu *s = &soak[n];

		console_printf("= cpu=%u ops=%lu W=%lu R=%lu D=%lu C=%lu G=%lu aborted=%lu"
			       " violations=%lu longest_us=%lu\n", n, s->seq, s->counts[0],
			       s->counts[1], s->counts[2], s->counts[3], s->counts[4],
			       s->aborted, s->violations, timebase_to_ns(s->longest) / 1000);
		report(!s->violations, "CPU %u: %s", n,
		       s->violations ? s->first_violation : "each call was executed once");
	}
}
STUB_TEST("soak", test_soak, "soak", false, "all CPUs use the keystore for a while");
