// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The part of "soak" that makes keys and wraps: what was wrapped must open as long as its
 * key is there, give the same data, and never open after that.
 */
#include "console.h"
#include "soak.h"
#include "string.h"
#include "timebase.h"

static void forget_blobs(struct soak_cpu *s)
{
	unsigned int n;

	for (n = 0; n < BLOBS; n++)
		s->blobs[n].size = 0;
}

/* True if the call made the object: its code is SUCCESS, and that is right. */
static bool was_made(struct soak_cpu *s, struct soak_object *object, int64_t code)
{
	if (soak_is_aborted(s, object, code))
		return false;
	if (object->state == PRESENT) {
		if (code != H_RESOURCE)
			soak_violate(s, "GEN_KEY over %s gave %ld", object->name, (long)code);
		return false;
	}
	if (code == H_RESOURCE && object->state == ABSENT)
		soak_violate(s, "GEN_KEY of %s was executed twice", object->name);
	else if (code != H_SUCCESS && code != H_RESOURCE)
		soak_violate(s, "GEN_KEY of %s gave %ld", object->name, (long)code);
	if (code != H_SUCCESS)
		object->state = UNKNOWN;
	return code == H_SUCCESS;
}

static int64_t gen_key(struct soak_cpu *s, struct soak_object *object, uint32_t policy,
		       uint32_t size, void *out)
{
	uint64_t start;
	int64_t code;

	soak_begin(s, OP_GEN_KEY);
	console_printf("> %u %lu K %u %s %x %u\n", s->index, s->seq, s->consumer, object->name,
		       policy, size);
	start = timebase();
	code = pks_gen_key(s->consumer, &object->label, policy, out, size);
	soak_note_time(s, start);
	return code;
}

static void became(struct soak_object *object, uint32_t policy, uint32_t size, uint64_t hash)
{
	object->state = PRESENT;
	object->policy = policy;
	object->size = size;
	object->hash = hash;
	object->flushed = false;
}

void soak_gen_plain(struct soak_cpu *s, struct soak_object *object)
{
	uint32_t size = 1 + (uint32_t)prng_below(&s->prng, soak_run.max_size);
	uint32_t policy = prng_below(&s->prng, 2) ? 0 : PKS_POLICY_WORLDREADABLE;
	uint64_t hash = 0;
	int64_t code;

	code = gen_key(s, object, policy, size, s->out);
	if (code == H_SUCCESS) {
		hash = fnv1a(s->out, size);
		console_printf("< %u %lu K %ld %016lx\n", s->index, s->seq, (long)code, hash);
	} else {
		console_printf("< %u %lu K %ld\n", s->index, s->seq, (long)code);
	}
	if (was_made(s, object, code))
		became(object, policy, size, hash);
}

static void gen_wrapping(struct soak_cpu *s)
{
	struct soak_object *key = &s->key;
	int64_t code;

	code = gen_key(s, key, PKS_POLICY_WRAPPINGKEY, PKS_WRAPPING_KEY_SIZE, NULL);
	console_printf("< %u %lu K %ld\n", s->index, s->seq, (long)code);
	if (was_made(s, key, code)) {
		became(key, PKS_POLICY_WRAPPINGKEY, PKS_WRAPPING_KEY_SIZE, 0);
		s->key_number++;
	}
}

/* A wrapping key's bytes are not told, but its policy is. */
void soak_key_look(struct soak_cpu *s)
{
	struct soak_object *key = &s->key;
	struct pks_result result;
	uint64_t start;

	soak_begin(s, OP_READ);
	console_printf("> %u %lu R %u %s\n", s->index, s->seq, s->consumer, key->name);
	start = timebase();
	result = pks_read(s->consumer, &key->label, s->out, sizeof(s->out));
	soak_note_time(s, start);
	console_printf("< %u %lu R %ld\n", s->index, s->seq, (long)result.code);
	if (result.code == H_ABORTED) {
		soak_is_aborted(s, NULL, result.code);
		return;
	}
	if (result.code == H_AUTHORITY && result.r5 == PKS_POLICY_WRAPPINGKEY) {
		if (key->state == ABSENT)
			soak_violate(s, "READ of absent %s finds it", key->name);
		if (key->state != PRESENT)
			became(key, PKS_POLICY_WRAPPINGKEY, PKS_WRAPPING_KEY_SIZE, 0);
	} else if (result.code == H_NOT_FOUND) {
		if (key->state == PRESENT)
			soak_violate(s, "READ of %s does not find it", key->name);
		key->state = ABSENT;
	} else {
		soak_violate(s, "READ of %s gave %ld", key->name, (long)result.code);
	}
}

static void wrap(struct soak_cpu *s, struct soak_blob *blob)
{
	uint32_t size = 1 + (uint32_t)prng_below(&s->prng, MAX_WRAPPED);
	struct pks_result result;
	uint64_t hash, start;

	soak_begin(s, OP_WRAP);
	hash = soak_fill(s, size);
	console_printf("> %u %lu P %u %s %lx %u %016lx\n", s->index, s->seq, s->consumer,
		       s->key.name, PKS_WRAP_DEFAULT, size, hash);
	start = timebase();
	result = pks_wrap(s->consumer, &s->key.label, PKS_WRAP_DEFAULT, s->data, size, blob->bytes,
			  sizeof(blob->bytes));
	soak_note_time(s, start);
	console_printf("< %u %lu P %ld %lu\n", s->index, s->seq, (long)result.code, result.r5);
	blob->size = 0;
	if (soak_is_aborted(s, NULL, result.code))
		return;
	if (result.code == H_SUCCESS && result.r5 == size + PKS_WRAP_OVERHEAD) {
		blob->size = size;
		blob->hash = hash;
		blob->key_number = s->key_number;
	}
	if (s->key.state == PRESENT && !blob->size)
		soak_violate(s, "WRAP gave %ld and %lu bytes", (long)result.code, result.r5);
	else if (s->key.state == ABSENT && result.code != H_NOT_FOUND)
		soak_violate(s, "WRAP without a key gave %ld", (long)result.code);
}

static void unwrap(struct soak_cpu *s, const struct soak_blob *blob)
{
	struct pks_result result;
	bool is_same, opens;
	uint64_t start;

	soak_begin(s, OP_UNWRAP);
	console_printf("> %u %lu U %u %s 0 %u %016lx\n", s->index, s->seq, s->consumer,
		       s->key.name, blob->size, blob->hash);
	memset(s->out, 0, blob->size);
	start = timebase();
	result = pks_unwrap(s->consumer, blob->bytes, blob->size + PKS_WRAP_OVERHEAD, s->out,
			    sizeof(s->out));
	soak_note_time(s, start);
	console_printf("< %u %lu U %ld %lu\n", s->index, s->seq, (long)result.code, result.r5);
	if (soak_is_aborted(s, NULL, result.code))
		return;
	is_same = result.code == H_SUCCESS && result.r5 == blob->size &&
		  fnv1a(s->out, blob->size) == blob->hash;
	opens = blob->key_number == s->key_number;
	if (result.code == H_SUCCESS && !is_same)
		soak_violate(s, "UNWRAP gave other data");
	else if (s->key.state == PRESENT && opens != is_same)
		soak_violate(s, "UNWRAP with %s key gave %ld", opens ? "its" : "another",
			     (long)result.code);
	else if (s->key.state == PRESENT && !opens && result.code != H_BAD_DATA)
		soak_violate(s, "UNWRAP with another key gave %ld", (long)result.code);
	else if (s->key.state == ABSENT && result.code != H_NOT_FOUND)
		soak_violate(s, "UNWRAP without a key gave %ld", (long)result.code);
}

void soak_key_operation(struct soak_cpu *s)
{
	struct soak_blob *blob = &s->blobs[prng_below(&s->prng, BLOBS)];
	uint64_t choice = prng_below(&s->prng, 100);

	if (s->key.state == UNKNOWN) {
		/* Which one it is, if it is there, cannot be seen. */
		forget_blobs(s);
		s->key_number++;
		soak_key_look(s);
	} else if (s->key.state == ABSENT && choice < 70) {
		gen_wrapping(s);
	} else if (choice < 5) {
		gen_wrapping(s);
	} else if (choice < 10) {
		soak_key_look(s);
	} else if (!blob->size || choice < 35) {
		wrap(s, blob);
	} else {
		unwrap(s, blob);
	}
}
