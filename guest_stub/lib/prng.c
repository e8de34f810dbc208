// SPDX-License-Identifier: GPL-2.0-or-later
/* Seeded pseudo-random numbers and a checksum. */
#include "prng.h"

void prng_seed(struct prng *prng, uint64_t seed)
{
	uint64_t z = seed + 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	z ^= z >> 31;
	prng->state = z ? z : 1;
}

uint64_t prng_next(struct prng *prng)
{
	uint64_t x = prng->state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	prng->state = x;
	return x * 0x2545f4914f6cdd1dull;
}

uint64_t prng_below(struct prng *prng, uint64_t bound)
{
	return prng_next(prng) % bound;
}

void prng_fill(struct prng *prng, void *out, size_t size)
{
	uint8_t *bytes = out;
	uint64_t number = 0;
	size_t n;

	for (n = 0; n < size; n++) {
		if (!(n & 7))
			number = prng_next(prng);
		bytes[n] = (uint8_t)(number >> (56 - 8 * (n & 7)));
	}
}

uint64_t fnv1a(const void *data, size_t size)
{
	const uint8_t *bytes = data;
	uint64_t hash = 0xcbf29ce484222325ull;

	while (size--)
		hash = (hash ^ *bytes++) * 0x100000001b3ull;
	return hash;
}
