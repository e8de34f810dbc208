// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * CPUs. Further ones are started for a piece of work and stopped after it (RTAS
 * start-cpu, stop-self), so that none spins while the boot CPU measures.
 */
#include "smp.h"

#include <stddef.h>

#include "asm_defs.h"
#include "rtas.h"
#include "timebase.h"

#define STACK_SIZE		32768
#define EXCEPTION_STACK_SIZE	16384
#define START_TIMEOUT_MS	5000

_Static_assert(offsetof(struct cpu, stack_top) == CPU_STACK_TOP, "asm_defs.h");
_Static_assert(offsetof(struct cpu, exception_stack_top) == CPU_EXCEPTION_STACK_TOP,
	       "asm_defs.h");
_Static_assert(offsetof(struct cpu, user_sp) == CPU_USER_SP, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame) == CPU_FRAME, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.gpr[31]) == FRAME_GPR(31), "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.nip) == FRAME_NIP, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.msr) == FRAME_MSR, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.lr) == FRAME_LR, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.ctr) == FRAME_CTR, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.xer) == FRAME_XER, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.cr) == FRAME_CR, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.dar) == FRAME_DAR, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.dsisr) == FRAME_DSISR, "asm_defs.h");
_Static_assert(offsetof(struct cpu, frame.vector) == FRAME_VECTOR, "asm_defs.h");

struct cpu cpus[MAX_CPUS];

static uint8_t stacks[MAX_CPUS][STACK_SIZE]
	__attribute__((aligned(16), section(".bss.aligned")));
static uint8_t exception_stacks[MAX_CPUS][EXCEPTION_STACK_SIZE]
	__attribute__((aligned(16), section(".bss.aligned")));

static struct {
	void (*work)(void *arg, unsigned int index);
	void *arg;
	volatile uint32_t running;
} job;

/* start.S */
void secondary_start(void);
void smp_secondary(void);

void smp_init(void)
{
	unsigned int n;

	for (n = 0; n < MAX_CPUS; n++) {
		cpus[n].index = n;
		cpus[n].stack_top = (uintptr_t)(stacks[n] + STACK_SIZE);
		cpus[n].exception_stack_top =
			(uintptr_t)(exception_stacks[n] + EXCEPTION_STACK_SIZE);
	}
}

unsigned int smp_count(void)
{
	return platform.cpu_count;
}

static void stop_self(void)
{
	rtas_call(platform.rtas.stop_self, 0, NULL, 1, NULL);
	for (;;)
		cpu_relax();
}

/* Entered from start.S on its own stack. */
void smp_secondary(void)
{
	job.work(job.arg, this_cpu->index);
	__atomic_sub_fetch(&job.running, 1, __ATOMIC_SEQ_CST);
	stop_self();
}

/* A CPU that has just finished may not have reached the stopped state yet. */
static bool wait_until_stopped(uint32_t server)
{
	uint64_t start = timebase();
	uint32_t state;

	while (timebase() - start < timebase_from_ms(START_TIMEOUT_MS)) {
		if (rtas_call(platform.rtas.query_cpu_stopped_state, 1, &server, 2, &state))
			return false;
		if (state == 0)
			return true;
		cpu_relax();
	}
	return false;
}

bool smp_run(unsigned int count, void (*work)(void *arg, unsigned int index), void *arg)
{
	unsigned int n;
	bool all = true;

	job.work = work;
	job.arg = arg;
	for (n = 1; n < count && all; n++) {
		const uint32_t args[] = {
			platform.cpu_server[n],
			(uint32_t)(uintptr_t)secondary_start,
			(uint32_t)(uintptr_t)&cpus[n],
		};

		__atomic_add_fetch(&job.running, 1, __ATOMIC_SEQ_CST);
		all = n < platform.cpu_count && wait_until_stopped(args[0]) &&
		      rtas_call(platform.rtas.start_cpu, 3, args, 1, NULL) == 0;
		if (!all)
			__atomic_sub_fetch(&job.running, 1, __ATOMIC_SEQ_CST);
	}
	if (all)
		work(arg, 0);
	while (__atomic_load_n(&job.running, __ATOMIC_SEQ_CST))
		cpu_relax();
	return all;
}

bool smp_wait(void)
{
	unsigned int n;

	for (n = 1; n < platform.cpu_count; n++) {
		if (!wait_until_stopped(platform.cpu_server[n]))
			return false;
	}
	return true;
}

bool spin_trylock(struct spinlock *lock)
{
	return !__atomic_exchange_n(&lock->taken, 1, __ATOMIC_ACQUIRE);
}

void spin_lock(struct spinlock *lock)
{
	while (!spin_trylock(lock)) {
		while (__atomic_load_n(&lock->taken, __ATOMIC_RELAXED))
			cpu_relax();
	}
}

void spin_unlock(struct spinlock *lock)
{
	__atomic_store_n(&lock->taken, 0, __ATOMIC_RELEASE);
}

void barrier_wait(struct barrier *barrier, unsigned int count)
{
	uint32_t generation = __atomic_load_n(&barrier->generation, __ATOMIC_SEQ_CST);

	if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_SEQ_CST) == count) {
		__atomic_store_n(&barrier->arrived, 0, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&barrier->generation, 1, __ATOMIC_SEQ_CST);
		return;
	}
	while (__atomic_load_n(&barrier->generation, __ATOMIC_SEQ_CST) == generation)
		cpu_relax();
}
