// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A secure VM (esm=1) whose pages the host takes out while all CPUs wait, and which all
 * CPUs then touch at once. Options:
 *	rounds=N	how often (5)
 *
 * After each "# touch ready" the host takes out what it likes, and sends an NMI: it goes to
 * all CPUs, so all of them must run here, and wait for it.
 */
#include "console.h"
#include "exception.h"
#include "platform.h"
#include "prng.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define PAGE		0x10000ul
#define PAGES		8u
#define REGION		(FREE_RAM_BASE + 0x400000)

/* What each page begins with; the rest is random and stays. */
struct head {
	uint64_t common;
	uint64_t own[MAX_CPUS];
};

static struct {
	struct barrier barrier;
	unsigned int count, rounds;
	volatile uint64_t waiting;
	uint64_t hashes[PAGES];
	uint64_t vectors, wrong;
} touch;

static struct head *head_of(unsigned int page)
{
	return (struct head *)(REGION + page * PAGE);
}

static uint64_t hash_of(unsigned int page)
{
	return fnv1a(head_of(page) + 1, PAGE - sizeof(struct head));
}

static void wait_for_nmi(void *arg)
{
	(void)arg;
	atomic_add(&touch.waiting, 1);
	for (;;)
		cpu_relax();
}

static void say_and_wait(void *arg)
{
	while (touch.waiting != touch.count - 1)
		cpu_relax();
	report_info("touch ready %u", *(unsigned int *)arg);
	wait_for_nmi(NULL);
}

static void touch_at_once(void *arg, unsigned int index)
{
	unsigned int round, page;

	(void)arg;
	for (round = 1; round <= touch.rounds; round++) {
		if (index == 0)
			touch.waiting = 0;
		barrier_wait(&touch.barrier, touch.count);
		if (exception_try(index ? wait_for_nmi : say_and_wait, &round) !=
		    VECTOR_SYSTEM_RESET)
			atomic_add(&touch.vectors, 1);
		for (page = 0; page < PAGES; page++) {
			struct head *head = head_of(page);

			/* By turns a store and a load come first. */
			if ((round + index) % 2)
				head->own[index]++;
			atomic_add(&head->common, 1);
			if (!((round + index) % 2))
				head->own[index]++;
			if (hash_of(page) != touch.hashes[page])
				atomic_add(&touch.wrong, 1);
		}
		barrier_wait(&touch.barrier, touch.count);
	}
}

static void test_secure_touch(void)
{
	unsigned int page, cpu, lost = 0;
	struct prng prng;

	memset(&touch, 0, sizeof(touch));
	touch.count = smp_count();
	touch.rounds = (unsigned int)arg_number("rounds", 5);
	prng_seed(&prng, 1);
	prng_fill(&prng, (void *)REGION, PAGES * PAGE);
	for (page = 0; page < PAGES; page++) {
		memset(head_of(page), 0, sizeof(struct head));
		touch.hashes[page] = hash_of(page);
	}
	report(touch.count > 1, "%u CPUs are there", touch.count);
	report(smp_wait() && smp_run(touch.count, touch_at_once, NULL), "they touch, all at once");
	report_equal(touch.vectors, 0, "the host let them go on each time");
	report_equal(touch.wrong, 0, "what is in the pages is what was");
	for (page = 0; page < PAGES; page++) {
		lost += head_of(page)->common != (uint64_t)touch.count * touch.rounds;
		for (cpu = 0; cpu < touch.count; cpu++)
			lost += head_of(page)->own[cpu] != touch.rounds;
	}
	report_equal(lost, 0, "and no store is lost");
}
STUB_TEST("secure_touch", test_secure_touch, "secure_touch", false,
	  "all CPUs touch pages that the host took out");
