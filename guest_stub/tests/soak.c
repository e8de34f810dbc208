// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All CPUs mix WRITE, READ, REMOVE, CONFIRM, GEN_PASSWORD and, in soak_key.c, GEN_KEY, WRAP
 * and UNWRAP, each on labels of its own, while the host side may be killed and started
 * again. Each CPU knows what its objects must be, so a call that was executed twice, or
 * not at all, shows; and each call is logged before and after, so that a host can check
 * the same against the store. The log is described in README.md, "The soak log". Options:
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
#include "soak.h"
#include "string.h"
#include "test.h"
#include "timebase.h"

#define MAX_TOLD	20	/* violations of each CPU that are told one by one */

static const char op_letters[] = "WRDCGKPU";

static struct soak_cpu soak[MAX_CPUS];
struct soak_run soak_run;

void soak_violate(struct soak_cpu *s, const char *format, ...)
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

void soak_begin(struct soak_cpu *s, enum soak_op op)
{
	s->seq++;
	s->counts[op]++;
}

/* And tells what it is about. */
static void begin(struct soak_cpu *s, enum soak_op op, const struct soak_object *object)
{
	soak_begin(s, op);
	console_printf("> %u %lu %c %u %s\n", s->index, s->seq, op_letters[op], s->consumer,
		       object ? object->name : "-");
}

uint64_t soak_fill(struct soak_cpu *s, uint32_t size)
{
	struct prng content;

	prng_seed(&content, soak_run.seed + ((uint64_t)s->index << 56) + (s->seq << 8));
	prng_fill(&content, s->data, size);
	return fnv1a(s->data, size);
}

void soak_note_time(struct soak_cpu *s, uint64_t start)
{
	uint64_t ticks = timebase() - start;

	if (ticks > s->longest)
		s->longest = ticks;
}

bool soak_is_aborted(struct soak_cpu *s, struct soak_object *object, int64_t code)
{
	if (code != H_ABORTED)
		return false;
	s->aborted++;
	if (object)
		object->state = UNKNOWN;
	if (!soak_run.aborts)
		soak_violate(s, "H_ABORTED");
	return true;
}

static void forget(struct soak_object *object)
{
	object->state = ABSENT;
	object->flushed = false;
}

static void do_write(struct soak_cpu *s, struct soak_object *object)
{
	uint32_t size = 1 + (uint32_t)prng_below(&s->prng, soak_run.max_size);
	uint32_t policy = prng_below(&s->prng, 2) ? 0 : PKS_POLICY_WORLDREADABLE;
	uint64_t hash, start;
	int64_t code;

	soak_begin(s, OP_WRITE);
	hash = soak_fill(s, size);
	console_printf("> %u %lu W %u %s %x %u %016lx\n", s->index, s->seq, s->consumer,
		       object->name, policy, size, hash);
	start = timebase();
	code = pks_write(s->consumer, &object->label, policy, s->data, size);
	soak_note_time(s, start);
	console_printf("< %u %lu W %ld\n", s->index, s->seq, (long)code);
	if (soak_is_aborted(s, object, code))
		return;
	if (object->state == PRESENT) {
		if (code != H_RESOURCE)
			soak_violate(s, "WRITE over %s gave %ld", object->name, (long)code);
		return;
	}
	if (code == H_RESOURCE)
		soak_violate(s, "WRITE of %s was executed twice", object->name);
	else if (code != H_SUCCESS)
		soak_violate(s, "WRITE of %s gave %ld", object->name, (long)code);
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
	soak_note_time(s, start);
	if (result.code == H_SUCCESS && result.r4 <= sizeof(s->out))
		hash = fnv1a(s->out, result.r4);
	if (result.code == H_SUCCESS)
		console_printf("< %u %lu R %ld %lx %lu %016lx\n", s->index, s->seq,
			       (long)result.code, result.r5, result.r4, hash);
	else
		console_printf("< %u %lu R %ld\n", s->index, s->seq, (long)result.code);
	if (result.code == H_ABORTED) {
		/* Reading changes nothing: what is known of the object stays true. */
		soak_is_aborted(s, NULL, result.code);
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
			soak_violate(s, "READ of %s gave %ld", object->name, (long)result.code);
		}
		return;
	}
	if (object->state == ABSENT) {
		if (result.code != H_NOT_FOUND)
			soak_violate(s, "READ of absent %s gave %ld", object->name,
				(long)result.code);
		return;
	}
	if (result.code != H_SUCCESS)
		soak_violate(s, "READ of %s%s gave %ld", object->flushed ? "flushed " : "",
			object->name, (long)result.code);
	else if (result.r4 != object->size || result.r5 != object->policy ||
		 hash != object->hash)
		soak_violate(s, "READ of %s gave other data", object->name);
}

static void do_remove(struct soak_cpu *s, struct soak_object *object)
{
	uint64_t start;
	int64_t code;

	begin(s, OP_REMOVE, object);
	start = timebase();
	code = pks_remove(s->consumer, &object->label);
	soak_note_time(s, start);
	console_printf("< %u %lu D %ld\n", s->index, s->seq, (long)code);
	if (soak_is_aborted(s, object, code))
		return;
	if (object->state == PRESENT && code == H_NOT_FOUND)
		soak_violate(s, "REMOVE of %s was executed twice", object->name);
	else if (object->state == PRESENT && code != H_SUCCESS)
		soak_violate(s, "REMOVE of %s gave %ld", object->name, (long)code);
	else if (object->state == ABSENT && code != H_NOT_FOUND)
		soak_violate(s, "REMOVE of absent %s gave %ld", object->name, (long)code);
	else if (object->state == UNKNOWN && code != H_SUCCESS && code != H_NOT_FOUND)
		soak_violate(s, "REMOVE of %s gave %ld", object->name, (long)code);
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
	soak_note_time(s, start);
	console_printf("< %u %lu C %ld %lu\n", s->index, s->seq, (long)result.code, result.r4);
	if (result.code == H_ABORTED) {
		soak_is_aborted(s, NULL, result.code);
		return;
	}
	flushed = (result.r4 & 0xff) == 1;
	if (object->state == UNKNOWN)
		return;
	if (object->state == PRESENT && result.code != H_SUCCESS)
		soak_violate(s, "CONFIRM of %s gave %ld", object->name, (long)result.code);
	/* A removal that is not yet flushed may be told as success with r4 = 0. */
	else if (object->state == ABSENT && result.code != H_NOT_FOUND &&
		 !(result.code == H_SUCCESS && !flushed))
		soak_violate(s, "CONFIRM of absent %s gave %ld, r4 %lu", object->name,
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
	code = pks_gen_password(s->consumer, s->password, soak_run.password_size);
	soak_note_time(s, start);
	console_printf("< %u %lu G %ld\n", s->index, s->seq, (long)code);
	if (!soak_is_aborted(s, NULL, code) && code != H_IN_USE)
		soak_violate(s, "GEN_PASSWORD gave %ld, with a password set", (long)code);
}

/* All CPUs want each consumer's password; exactly one must get it. */
static void race_for_passwords(struct soak_cpu *s)
{
	unsigned int own = s->consumer, consumer;

	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		int64_t code;

		s->consumer = consumer;
		barrier_wait(&soak_run.barrier, soak_run.cpus);
		begin(s, OP_GEN_PASSWORD, NULL);
		code = pks_gen_password(consumer, s->password, soak_run.password_size);
		console_printf("< %u %lu G %ld\n", s->index, s->seq, (long)code);
		if (code == H_SUCCESS) {
			if (atomic_add(&soak_run.winners[consumer], 1) == 1)
				pks_keep_password(consumer, s->password, soak_run.password_size);
			else
				soak_violate(s, "consumer %u got two passwords", consumer);
		} else if (!soak_is_aborted(s, NULL, code) && code != H_IN_USE) {
			soak_violate(s, "GEN_PASSWORD gave %ld", (long)code);
		}
		barrier_wait(&soak_run.barrier, soak_run.cpus);
		if (s->index == 0 && !soak_run.winners[consumer])
			soak_violate(s, "GEN_PASSWORD for consumer %u was executed and not told",
				consumer);
	}
	s->consumer = own;
	barrier_wait(&soak_run.barrier, soak_run.cpus);
}

static void one_operation(struct soak_cpu *s)
{
	struct soak_object *object = &s->objects[prng_below(&s->prng, LABELS)];
	uint64_t choice = prng_below(&s->prng, 100);

	if (object->state == UNKNOWN)
		do_read(s, object);
	else if (choice < 20)
		do_write(s, object);
	else if (choice < 30)
		soak_gen_plain(s, object);
	else if (choice < 45)
		do_read(s, object);
	else if (choice < 60)
		do_remove(s, object);
	else if (choice < 72)
		do_confirm(s, object);
	else if (choice < 75)
		do_gen_password(s);
	else if (choice < 98)
		soak_key_operation(s);
	else
		do_remove(s, &s->key);
}

/* So small that all objects fit at once: then H_NO_MEM can never be right. */
static void share_space(struct soak_cpu *s)
{
	struct pks_config config;
	uint32_t share, overhead;

	if (pks_get_config(&config) != H_SUCCESS) {
		soak_violate(s, "GET_CONFIG failed");
		return;
	}
	share = (config.totalsize - config.usedspace) / (soak_run.cpus * (LABELS + 1));
	overhead = config.objoverhead + PKS_LABEL_HEADER_SIZE + sizeof(s->objects[0].name);
	if (share <= overhead) {
		soak_violate(s, "%u of %u bytes are in use: too little is left",
			config.usedspace, config.totalsize);
		return;
	}
	soak_run.max_size = share - overhead < MAX_DATA ? share - overhead : MAX_DATA;
	console_printf("= space total=%u used=%u max_size=%u\n", config.totalsize,
		       config.usedspace, soak_run.max_size);
}

static void soak_work(void *arg, unsigned int index)
{
	struct soak_cpu *s = &soak[index];
	unsigned int n;
	uint64_t op;

	(void)arg;
	if (soak_run.race) {
		race_for_passwords(s);
		if (!soak_run.winners[1] || !soak_run.winners[2] || !soak_run.winners[3])
			return;		/* without passwords there is nothing to do */
	}
	/* What an earlier run left: then all is known. */
	for (n = 0; n < LABELS; n++)
		do_remove(s, &s->objects[n]);
	do_remove(s, &s->key);
	barrier_wait(&soak_run.barrier, soak_run.cpus);
	if (index == 0)
		share_space(s);
	barrier_wait(&soak_run.barrier, soak_run.cpus);
	if (!soak_run.max_size)
		return;
	for (op = 0; soak_run.ops ? op < soak_run.ops : timebase() < soak_run.deadline; op++) {
		one_operation(s);
		if (soak_run.pause_ms)
			delay_ms(soak_run.pause_ms);
	}
	for (n = 0; n < LABELS; n++) {
		do_read(s, &s->objects[n]);
		do_confirm(s, &s->objects[n]);
	}
	soak_key_look(s);
	if (arg_number("clean", 0))
		do_remove(s, &s->key);
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
	memset(&soak_run, 0, sizeof(soak_run));
	soak_run.cpus = smp_count();
	soak_run.seed = arg_number("seed", 1);
	soak_run.ops = arg_number("ops", 0);
	soak_run.pause_ms = arg_number("pause-ms", 0);
	soak_run.aborts = arg_number("aborts", 0) != 0;
	soak_run.password_size = config.maxpwsize;
	soak_run.race = !pks_has_password(PKS_CONSUMER_OS);
	memset(soak, 0, sizeof(soak));
	for (n = 0; n < soak_run.cpus; n++) {
		struct soak_cpu *s = &soak[n];

		s->index = n;
		s->consumer = 1 + n % PKS_CONSUMERS;
		prng_seed(&s->prng, soak_run.seed + n);
		for (m = 0; m < LABELS; m++) {
			struct soak_object *object = &s->objects[m];

			format_text(object->name, sizeof(object->name), "soak-%u-%u", n, m);
			pks_label_set(&object->label, s->consumer, object->name);
			object->state = UNKNOWN;
		}
		format_text(s->key.name, sizeof(s->key.name), "soak-%u-key", n);
		pks_label_set(&s->key.label, s->consumer, s->key.name);
		s->key.state = UNKNOWN;
	}
	/* The race and the removals count, too. */
	soak_run.deadline = timebase() + timebase_from_ms(1000 * arg_number("seconds", 5));
	return true;
}

static void test_soak(void)
{
	unsigned int n;

	if (!prepare())
		return;
	console_printf("= soak seed=%lu cpus=%u labels=%u race=%u\n", soak_run.seed,
		       soak_run.cpus, LABELS, soak_run.race);
	report(smp_run(soak_run.cpus, soak_work, NULL), "%u CPUs ran", soak_run.cpus);
	for (n = 0; n < soak_run.cpus; n++) {
		const struct soak_cpu *s = &soak[n];

		console_printf("= cpu=%u ops=%lu W=%lu R=%lu D=%lu C=%lu G=%lu K=%lu P=%lu U=%lu"
			       " aborted=%lu violations=%lu longest_us=%lu\n", n, s->seq,
			       s->counts[OP_WRITE], s->counts[OP_READ], s->counts[OP_REMOVE],
			       s->counts[OP_CONFIRM], s->counts[OP_GEN_PASSWORD],
			       s->counts[OP_GEN_KEY], s->counts[OP_WRAP], s->counts[OP_UNWRAP],
			       s->aborted, s->violations, timebase_to_ns(s->longest) / 1000);
		report(!s->violations, "CPU %u: %s", n,
		       s->violations ? s->first_violation : "each call was executed once");
	}
}
STUB_TEST("soak", test_soak, "soak", false, "all CPUs use the keystore for a while");
