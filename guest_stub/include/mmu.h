/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A radix tree that maps every address to itself and that problem state may use. The
 * stub itself always runs with translation off.
 */
#ifndef STUB_MMU_H
#define STUB_MMU_H

#include <stdbool.h>
#include <stdint.h>

/* PIDR while the tree is in use. */
#define STUB_PID	1

/* False when this CPU has no radix MMU (POWER8) or the hypervisor refused. */
bool mmu_enable_radix(void);

/* On every CPU that uses it: set PIDR. */
void mmu_enter_process(void);

/* Where the tree is: process table, root, directory. */
#define MMU_TABLES	3
void mmu_tables(uint64_t tables[MMU_TABLES]);

/* tlbie of the whole process, seen by all CPUs; needs mmu_enable_radix(). */
void mmu_tlbie_process(void);

#endif
