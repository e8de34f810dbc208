// SPDX-License-Identifier: GPL-2.0-or-later
/* Waiting by the timebase. */
#include "timebase.h"

#include "smp.h"

void delay_ms(uint64_t ms)
{
	uint64_t start = timebase();
	uint64_t ticks = timebase_from_ms(ms);

	while (timebase() - start < ticks)
		cpu_relax();
}
