/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Becoming a secure VM by UV_ESM, as Linux's prom_init does.
 *
 * The image is the kernel that is measured, so nothing may have changed its .data before:
 * cas=1 does. QEMU's -initrd has the blob, made for the image, for that initrd and for
 * this command line. All memory that is not measured is zeroed; the image begins anew at
 * its first byte, and takes what firmware had said from the device tree that it made.
 */
#ifndef STUB_ESM_H
#define STUB_ESM_H

#include <stdint.h>

#include "platform.h"

/* Where the tree and RTAS are put: free RAM, a page of the ultravisor's for each. */
#define ESM_TREE	FREE_RAM_BASE
#define ESM_RTAS	(FREE_RAM_BASE + 0x10000)
#define ESM_RTAS_SIZE	20

/* What was in memory that is not measured, for tests to look for. */
#define ESM_CANARY	0xc5
#define ESM_CANARIES	(FREE_RAM_BASE + 0x20000)
#define ESM_CANARY_SIZE	0x20000ull

/* The first byte of the image. */
uint64_t esm_kernel(void);

/* Makes tree and RTAS; gives the tree's size. */
uint32_t esm_make_tree(const char *bootargs);

/* UV_ESM. Gives its code if it returns. */
int64_t esm_enter(uint64_t kernel, uint64_t tree);
void esm_enter_or_abort(void);

/* Afterwards, instead of platform_init(). */
void esm_resume(uint64_t tree, uint64_t kernel);

/* What r4 was when the image was entered anew. */
extern uint64_t esm_resumed_at;

#endif
