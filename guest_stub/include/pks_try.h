/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hostile arguments, for tests. Each call has a set of good arguments with which it
 * changes nothing (WRITE names an object that exists, REMOVE one that does not, the
 * passwords are set), and so a code that says that the arguments passed. One argument at
 * a time is then replaced: the code must be the argument's own, nothing may be written,
 * and the space in use must stay.
 */
#ifndef STUB_PKS_TRY_H
#define STUB_PKS_TRY_H

#include <stdbool.h>
#include <stdint.h>

#include "pks.h"

#define TRY_CANARY		0x5a
#define TRY_WATCHED_SIZE	8192	/* of each buffer that a call might write to */
#define TRY_OUT_SIZE		4096
#define HIGH_WORD		(1ull << 32)
#define HIGH_BIT		(1ull << 63)

struct call {
	const char *name;
	uint64_t number;
	uint64_t args[9];
	unsigned int count;
	int64_t passed;		/* the code when all arguments are good */
	unsigned int token;	/* which argument is a continue token; 0: none is */
};

/* Calls may write to pks_out and to page; both hold canaries before each. */
extern struct trial {
	uint8_t auth[2 * PAGE_SIZE] __attribute__((aligned(4096)));
	uint8_t page[2 * PAGE_SIZE] __attribute__((aligned(4096)));
	struct pks_label present, absent;	/* an object of 64 bytes, and none */
	struct pks_config config;
	uint32_t used;
} trial;

/* Passwords of all consumers, one object that is there and one that is not. */
bool try_set_up(void);
void try_tear_down(void);

/* To be used after an object was made or removed on purpose. */
void try_note_used(void);

/* The operating system's authorization structure, with the right password. */
void try_set_auth(void *at);

/* Authorization, label and its size; more arguments are the caller's. */
struct call object_call(const char *name, uint64_t number, int64_t passed,
			const struct pks_label *label);

/* Runs the call, with one argument replaced if n is not negative. */
void try_call(const struct call *call, int n, uint64_t value, int64_t expected,
	      const char *what);

/* The same, expecting the code of argument n: H_PARAMETER, H_P2, ... */
void try_bad(const struct call *call, unsigned int n, uint64_t value, const char *what);

/* Addresses at which these many bytes are not all RAM; step keeps an alignment. */
void try_bad_address(const struct call *call, unsigned int n, uint64_t size, uint64_t step);

/* Numbers that are no size up to max: max itself and min are the caller's. */
void try_bad_size(const struct call *call, unsigned int n, uint64_t min, uint64_t max);

/* Contents of the authorization structure, and where it lies: argument 0. */
void try_bad_auth(const struct call *call);

/* The label is argument number 1, its size number 2. */
void try_bad_label(const struct call *call);

#endif
