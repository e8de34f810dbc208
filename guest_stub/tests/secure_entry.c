// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * UV_ESM of this image: what is refused, and what a secure VM finds of its memory. The
 * initrd has the blob (esm.h).
 */
#include "esm.h"
#include "hcall.h"
#include "string.h"
#include "test.h"

#define PATTERN		0x3c
#define PATTERN_BASE	(FREE_RAM_BASE + 0x100000)
#define PATTERN_SIZE	0x40000ull

static void refused(uint64_t kernel, uint64_t tree, int64_t code, const char *what)
{
	struct hcall_regs regs;
	unsigned int n;

	hcall_fill(&regs, UV_ESM, (const uint64_t[]){ kernel, tree }, 2);
	ucall_raw(&regs);
	report_code((int64_t)regs.r[3], code, "%s", what);
	report(regs.r[4] == kernel && regs.r[5] == tree, "and r4, r5 are as they were");
	for (n = 6; n < 13 && regs.r[n] == HCALL_POISON(n); n++)
		;
	report_equal(n, 13, "and so are r6 to r12");
}

/* The guest goes on after its sc 2 with its memory as it was, and may try again. */
static void test_secure_refused(void)
{
	uint8_t *tree = (uint8_t *)ESM_TREE;
	uint64_t kernel = esm_kernel();
	uint32_t size;

	memset((void *)PATTERN_BASE, PATTERN, PATTERN_SIZE);
	size = esm_make_tree(platform.bootargs);
	refused(0, ESM_TREE, U_P2, "no kernel");
	refused(kernel, 0, U_P3, "no device tree");
	refused(0, 0, U_P2, "neither");
	refused(kernel + 4, ESM_TREE, U_PARAMETER, "a kernel that begins elsewhere");
	refused(platform.ram_end, ESM_TREE, U_PARAMETER, "a kernel that is not in RAM");
	refused(~0ull, ESM_TREE, U_PARAMETER, "a kernel at the end of all addresses");
	refused(kernel, ESM_TREE + 4, U_PARAMETER, "a tree that begins elsewhere");
	refused(kernel, PATTERN_BASE, U_PARAMETER, "a tree that is none");

	store_be32(tree + 4, 0);
	refused(kernel, ESM_TREE, U_PARAMETER, "a tree of no size");
	store_be32(tree + 4, 0x100001);
	refused(kernel, ESM_TREE, U_PARAMETER, "a tree above 1 MiB");
	store_be32(tree + 4, 0xffffffff);
	refused(kernel, ESM_TREE, U_PARAMETER, "a tree of 4 GiB");
	store_be32(tree + 4, size);
	store_be32(tree + 28, 4096);
	refused(kernel, ESM_TREE, U_PARAMETER, "a boot CPU that cannot be");

	esm_make_tree("another command line");
	refused(kernel, ESM_TREE, U_PARAMETER, "another command line");
	esm_make_tree(platform.bootargs);
	((uint8_t *)ESM_RTAS)[3] ^= 1;
	refused(kernel, ESM_TREE, U_PARAMETER, "another RTAS");
	((uint8_t *)ESM_RTAS)[3] ^= 1;
	((uint8_t *)platform.initrd)[platform.initrd_size - 1] ^= 1;
	refused(kernel, ESM_TREE, U_PARAMETER, "another initrd");
	((uint8_t *)platform.initrd)[platform.initrd_size - 1] ^= 1;

	report(memory_is((void *)PATTERN_BASE, PATTERN, PATTERN_SIZE),
	       "memory that is not measured is as it was");
	report(!memory_is((void *)ESM_RTAS, 0, ESM_RTAS_SIZE), "and so is RTAS");
}
STUB_TEST("secure_refused", test_secure_refused, "secure_guest", false,
	  "UV_ESM that does not make a secure VM");

/* esm=1: nothing is left but kernel, initrd, tree and RTAS. */
static void test_secure_memory(void)
{
	uint32_t size = load_be32((uint8_t *)ESM_TREE + 4);
	uint64_t end = platform.ram_end;

	if (!platform.is_secure) {
		report_skip("the guest is not secure: esm=1");
		return;
	}
	report_equal(esm_resumed_at, esm_kernel(), "r4 is the kernel's address");
	report(memory_is((uint8_t *)ESM_TREE + size, 0, 0x10000 - size),
	       "zeros behind the tree, in its page");
	report_equal(load_be32((uint8_t *)ESM_RTAS), 0x7c641b78, "RTAS is there");
	report(memory_is((uint8_t *)ESM_RTAS + ESM_RTAS_SIZE, 0, 0x10000 - ESM_RTAS_SIZE),
	       "zeros behind RTAS");
	report(memory_is((void *)ESM_CANARIES, 0, ESM_CANARY_SIZE),
	       "zeros where nobody looked");
	report(memory_is((void *)(end - 0x100000), 0, 0x100000), "zeros at the end of RAM");
	report_code(esm_enter(esm_kernel(), ESM_TREE), U_RETRY, "it is secure already");
}
STUB_TEST("secure_memory", test_secure_memory, "secure_guest", false,
	  "what a secure VM finds of its memory");
