/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Seeded pseudo-random numbers (xorshift64*, Vigna 2014) and a checksum (FNV-1a 64):
 * both a few lines in any language, so that a host can compute the same.
 */
#ifndef STUB_PRNG_H
#define STUB_PRNG_H

#include <stddef.h>
#include <stdint.h>

struct prng {
	uint64_t state;
};

/* State = seed scattered by splitmix64, never 0. */
void prng_seed(struct prng *prng, uint64_t seed);
uint64_t prng_next(struct prng *prng);

/* 0 to bound - 1. */
uint64_t prng_below(struct prng *prng, uint64_t bound);

/* Each number gives eight bytes, its most significant first. */
void prng_fill(struct prng *prng, void *out, size_t size);

uint64_t fnv1a(const void *data, size_t size);

#endif
