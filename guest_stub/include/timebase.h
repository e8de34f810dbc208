/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Time, by the timebase. */
#ifndef STUB_TIMEBASE_H
#define STUB_TIMEBASE_H

#include <stdint.h>

#include "platform.h"

static inline uint64_t timebase(void)
{
	uint64_t ticks;

	asm volatile("mfspr %0,268" : "=r"(ticks) : : "memory");
	return ticks;
}

static inline uint64_t timebase_to_ns(uint64_t ticks)
{
	uint64_t hz = platform.timebase_hz;

	return ticks / hz * 1000000000ull + ticks % hz * 1000000000ull / hz;
}

static inline uint64_t timebase_from_ms(uint64_t ms)
{
	return ms * platform.timebase_hz / 1000;
}

void delay_ms(uint64_t ms);

#endif
