/* SPDX-License-Identifier: GPL-2.0-or-later */
/* CPUs, locks, and work on several CPUs at once. */
#ifndef STUB_SMP_H
#define STUB_SMP_H

#include <stdbool.h>
#include <stdint.h>

#include "platform.h"

struct exception_frame {
	uint64_t gpr[32];
	uint64_t nip, msr, lr, ctr, xer, cr, dar, dsisr, vector;
};

/* What context_save() keeps: LR, r1, r2, CR, r14 to r31. */
struct context {
	uint64_t words[22];
};

int context_save(struct context *context) __attribute__((returns_twice));
void context_restore(struct context *context) __attribute__((noreturn));

struct cpu {
	uint64_t stack_top;		/* the first four: see asm_defs.h */
	uint64_t exception_stack_top;
	uint64_t user_sp;
	struct exception_frame frame;
	unsigned int index;
	uint32_t server;
	unsigned int handling;		/* exceptions being handled */
	bool expecting;			/* exception_try() is in force */
	struct context recovery;
};

extern struct cpu cpus[MAX_CPUS];

/* r13 is the thread pointer of the ABI; nothing but us touches it. */
register struct cpu *this_cpu asm("r13");

void smp_init(void);
unsigned int smp_count(void);

/*
 * Run work(arg, index) on CPUs 0 to count - 1, the boot CPU being 0, and wait until
 * all have returned. False when a CPU could not be started; then nothing was run
 * on those that follow, and the caller sees which by what they left undone.
 */
bool smp_run(unsigned int count, void (*work)(void *arg, unsigned int index), void *arg);

/* Wait until all CPUs but this one are stopped. False when one does not stop in time. */
bool smp_wait(void);

struct spinlock {
	volatile uint32_t taken;
};

void spin_lock(struct spinlock *lock);
bool spin_trylock(struct spinlock *lock);
void spin_unlock(struct spinlock *lock);

/* Until count CPUs have come here; the same barrier serves again. */
struct barrier {
	volatile uint32_t arrived;
	volatile uint32_t generation;
};

void barrier_wait(struct barrier *barrier, unsigned int count);

static inline uint64_t atomic_add(volatile uint64_t *counter, uint64_t n)
{
	return __atomic_add_fetch(counter, n, __ATOMIC_SEQ_CST);
}

/* Give the host to somebody else: any "or rx,rx,rx" ends QEMU's turn of this CPU. */
static inline void cpu_relax(void)
{
	asm volatile("or 1,1,1; or 2,2,2" : : : "memory");
}

#endif
