// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Radix translation (Power ISA 3.1 book III 6.7.10): a process table, a root of 2^13
 * entries and one directory of 512 leaves of 1 GiB, all big-endian.
 */
#include "mmu.h"

#include <stdint.h>

#include "hcall.h"
#include "platform.h"
#include "string.h"

#define SPR_PID			48

#define ROOT_BITS		13
#define DIRECTORY_BITS		9
#define LEAF_SHIFT		30

/* Tree covers 52 bits of address: RTS = 52 - 31 = 0b10101, split as the ISA splits it. */
#define PRTE_RTS_52		(2ull << 61 | 5ull << 5)

#define PTE_VALID		(1ull << 63)
#define PTE_LEAF		(1ull << 62)
#define PTE_REFERENCED		(1ull << 8)
#define PTE_CHANGED		(1ull << 7)
#define PTE_READ		(1ull << 2)
#define PTE_READ_WRITE		(1ull << 1)
#define PTE_EXECUTE		(1ull << 0)
#define PTE_ALL			(PTE_REFERENCED | PTE_CHANGED | PTE_READ |	\
				 PTE_READ_WRITE | PTE_EXECUTE)

/* H_REGISTER_PROC_TBL: new table, radix, guest translation shootdown enabled. */
#define PROC_TBL_NEW		0x18
#define PROC_TBL_RADIX		0x04
#define PROC_TBL_GTSE		0x01
#define PROC_TBL_ORDER		12

#define PAGE_TABLE __attribute__((section(".bss.aligned")))

static uint64_t root[1 << ROOT_BITS] __attribute__((aligned(65536))) PAGE_TABLE;
static uint64_t directory[1 << DIRECTORY_BITS] __attribute__((aligned(4096))) PAGE_TABLE;
static uint64_t process_table[(1 << PROC_TBL_ORDER) / 8]
	__attribute__((aligned(4096))) PAGE_TABLE;

static bool enabled;

void mmu_enter_process(void)
{
	asm volatile("mtspr %0,%1; isync" : : "i"(SPR_PID), "r"((uint64_t)STUB_PID)
		     : "memory");
}

bool mmu_enable_radix(void)
{
	struct hcall_regs regs;
	uint64_t n;

	if (enabled)
		return true;
	if (!platform.has_radix)
		return false;
	for (n = 0; n < 1 << DIRECTORY_BITS; n++)
		directory[n] = be64(PTE_VALID | PTE_LEAF | n << LEAF_SHIFT | PTE_ALL);
	root[0] = be64(PTE_VALID | (uintptr_t)directory | DIRECTORY_BITS);
	process_table[2 * STUB_PID] = be64(PRTE_RTS_52 | (uintptr_t)root | ROOT_BITS);
	asm volatile("ptesync" : : : "memory");
	if (HCALL(&regs, H_REGISTER_PROC_TBL, PROC_TBL_NEW | PROC_TBL_RADIX | PROC_TBL_GTSE,
		  (uintptr_t)process_table, 0, PROC_TBL_ORDER - 12) != H_SUCCESS)
		return false;
	mmu_enter_process();
	enabled = true;
	return true;
}

void mmu_tables(uint64_t tables[MMU_TABLES])
{
	tables[0] = (uintptr_t)process_table;
	tables[1] = (uintptr_t)root;
	tables[2] = (uintptr_t)directory;
}

void mmu_tlbie_process(void)
{
	uint64_t rb = 1ull << 10;			/* IS = 1: by PID */
	uint64_t rs = (uint64_t)STUB_PID << 32;

	/* RIC = 2 (all), PRS = 1 (process scoped), R = 1 (radix) */
	asm volatile(".machine push; .machine power9;"
		     "ptesync; tlbie %0,%1,2,1,1; eieio; tlbsync; ptesync;"
		     ".machine pop"
		     : : "r"(rb), "r"(rs) : "memory");
}
