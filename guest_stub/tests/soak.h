/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of the test "soak" share: soak.c (objects, passwords), soak_key.c (keys). */
#ifndef STUB_TESTS_SOAK_H
#define STUB_TESTS_SOAK_H

#include <stdbool.h>
#include <stdint.h>

#include "pks.h"
#include "prng.h"
#include "smp.h"

#define LABELS		8
#define BLOBS		4
#define MAX_DATA	4096
#define MAX_WRAPPED	1024	/* bytes before they are wrapped */

enum object_state { ABSENT, PRESENT, UNKNOWN };

struct soak_object {
	struct pks_label label;
	char name[24];
	enum object_state state;
	uint32_t size, policy;
	uint64_t hash;
	bool flushed;		/* the state was confirmed */
};

/* Something wrapped, to be unwrapped later; size 0: none. */
struct soak_blob {
	uint32_t size;
	uint64_t hash;		/* of the data */
	unsigned int key_number;
	uint8_t bytes[MAX_WRAPPED + PKS_WRAP_OVERHEAD];
};

enum soak_op {
	OP_WRITE, OP_READ, OP_REMOVE, OP_CONFIRM, OP_GEN_PASSWORD, OP_GEN_KEY, OP_WRAP, OP_UNWRAP,
	OP_COUNT
};

struct soak_cpu {
	uint8_t data[MAX_DATA] __attribute__((aligned(4096)));
	uint8_t out[MAX_DATA] __attribute__((aligned(4096)));
	uint8_t password[4096] __attribute__((aligned(4096)));
	struct soak_object objects[LABELS];
	struct soak_object key;	/* a wrapping key */
	unsigned int key_number; /* how many it has been: each opens its own blobs only */
	struct soak_blob blobs[BLOBS];
	struct prng prng;
	unsigned int index, consumer;
	uint64_t seq;
	uint64_t counts[OP_COUNT];
	uint64_t aborted, violations, longest;
	char first_violation[120];
};

extern struct soak_run {
	unsigned int cpus;
	uint64_t seed, ops, deadline, pause_ms;
	bool aborts, race;
	uint32_t max_size;
	uint16_t password_size;
	struct barrier barrier;
	volatile uint64_t winners[PKS_CONSUMERS + 1];
} soak_run;

/* A rule was broken. */
void soak_violate(struct soak_cpu *s, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* A call begins: counts it, and numbers it. */
void soak_begin(struct soak_cpu *s, enum soak_op op);

/* The data of this call: a host computes the same from seed, CPU and number. */
uint64_t soak_fill(struct soak_cpu *s, uint32_t size);

/* The call's time, for the longest one. */
void soak_note_time(struct soak_cpu *s, uint64_t start);

/* True for a code after which nobody knows whether the change was made. */
bool soak_is_aborted(struct soak_cpu *s, struct soak_object *object, int64_t code);

/* GEN_KEY for an object of the CPU's, in place of WRITE: the guest gets the key. */
void soak_gen_plain(struct soak_cpu *s, struct soak_object *object);

/* One of: GEN_KEY of the wrapping key, WRAP, UNWRAP, a look at the key. */
void soak_key_operation(struct soak_cpu *s);

/* The wrapping key was removed, or may have been: see what became of it. */
void soak_key_look(struct soak_cpu *s);

#endif
