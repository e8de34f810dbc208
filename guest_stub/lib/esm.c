// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * UV_ESM, and the device tree for it (Devicetree Specification v0.4, chapter 5). Of
 * /chosen and /rtas there is what an ultravisor looks for (open-power/ultravisor
 * svm/svm-esm.c, svm-rtas.c).
 */
#include "esm.h"

#include "hcall.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define FDT_MAGIC		0xd00dfeed
#define FDT_VERSION		17
#define FDT_COMPATIBLE		16
#define FDT_BEGIN_NODE		1
#define FDT_END_NODE		2
#define FDT_PROP		3
#define FDT_END			9
#define HEADER_SIZE		40
#define RESERVE_SIZE		16
#define MAX_STRINGS		256

/* Above the tree, where what firmware had said is found. */
static const char platform_name[] = "stub,platform";

/* Both firmwares install these very bytes: a hypercall to QEMU, and back. */
static const uint32_t rtas_text[ESM_RTAS_SIZE / 4] = {
	0x7c641b78, 0x3c600000, 0x6063f000, 0x44000022, 0x4e800020,
};

/* start.S */
void _start(void);

uint64_t esm_resumed_at;

struct writer {
	uint8_t *at;
	char strings[MAX_STRINGS];
	uint32_t strings_size;
};

static void put_cell(struct writer *w, uint32_t value)
{
	store_be32(w->at, value);
	w->at += 4;
}

static void put_bytes(struct writer *w, const void *data, uint32_t size)
{
	memcpy(w->at, data, size);
	memset(w->at + size, 0, -size & 3);
	w->at += (size + 3) & ~3u;
}

static void begin_node(struct writer *w, const char *name)
{
	put_cell(w, FDT_BEGIN_NODE);
	put_bytes(w, name, (uint32_t)strlen(name) + 1);
}

static void put_property(struct writer *w, const char *name, const void *data, uint32_t size)
{
	uint32_t length = (uint32_t)strlen(name) + 1;

	if (w->strings_size + length > MAX_STRINGS)
		stub_abort("the names of the tree's properties have more than %u bytes",
			   MAX_STRINGS);
	put_cell(w, FDT_PROP);
	put_cell(w, size);
	put_cell(w, w->strings_size);
	put_bytes(w, data, size);
	memcpy(w->strings + w->strings_size, name, length);
	w->strings_size += length;
}

static void put_number(struct writer *w, const char *name, uint64_t value, uint32_t size)
{
	uint8_t bytes[8];

	store_be64(bytes, value);
	put_property(w, name, bytes + 8 - size, size);
}

static void put_nodes(struct writer *w, const char *bootargs)
{
	begin_node(w, "");
	put_property(w, platform_name, &platform, sizeof(platform));
	begin_node(w, "rtas");
	put_number(w, "linux,rtas-base", ESM_RTAS, 4);
	put_number(w, "rtas-size", PAGE_SIZE, 4);
	put_cell(w, FDT_END_NODE);
	begin_node(w, "chosen");
	put_property(w, "bootargs", bootargs, (uint32_t)strlen(bootargs) + 1);
	put_number(w, "linux,initrd-start", platform.initrd, 8);
	put_number(w, "linux,initrd-end", platform.initrd + platform.initrd_size, 8);
	put_cell(w, FDT_END_NODE);
	put_cell(w, FDT_END_NODE);
	put_cell(w, FDT_END);
}

uint64_t esm_kernel(void)
{
	return (uintptr_t)_start;
}

uint32_t esm_make_tree(const char *bootargs)
{
	static struct writer w;
	uint8_t *tree = (uint8_t *)ESM_TREE;
	uint32_t n, structure_size, size;

	for (n = 0; n < ESM_RTAS_SIZE / 4; n++)
		store_be32((uint8_t *)ESM_RTAS + 4 * n, rtas_text[n]);
	memset(&w, 0, sizeof(w));
	w.at = tree + HEADER_SIZE + RESERVE_SIZE;
	put_nodes(&w, bootargs);
	structure_size = (uint32_t)(w.at - tree) - HEADER_SIZE - RESERVE_SIZE;
	memcpy(w.at, w.strings, w.strings_size);
	size = (uint32_t)(w.at - tree) + w.strings_size;
	memset(tree + HEADER_SIZE, 0, RESERVE_SIZE);
	store_be32(tree, FDT_MAGIC);
	store_be32(tree + 4, size);
	store_be32(tree + 8, HEADER_SIZE + RESERVE_SIZE);
	store_be32(tree + 12, size - w.strings_size);
	store_be32(tree + 16, HEADER_SIZE);
	store_be32(tree + 20, FDT_VERSION);
	store_be32(tree + 24, FDT_COMPATIBLE);
	store_be32(tree + 28, 0);
	store_be32(tree + 32, w.strings_size);
	store_be32(tree + 36, structure_size);
	return size;
}

int64_t esm_enter(uint64_t kernel, uint64_t tree)
{
	struct hcall_regs regs;

	return UCALL(&regs, UV_ESM, kernel, tree);
}

void esm_enter_or_abort(void)
{
	uint32_t size = esm_make_tree(platform.bootargs);

	/* Behind the tree, in its own page, and in pages that nobody asks for. */
	memset((uint8_t *)ESM_TREE + size, ESM_CANARY, 0x10000 - size);
	memset((void *)ESM_CANARIES, ESM_CANARY, ESM_CANARY_SIZE);
	stub_abort("UV_ESM gave %ld; the daemon's log says why",
		   (long)esm_enter(esm_kernel(), ESM_TREE));
}

/* The first property of the root is the one that is looked for. */
void esm_resume(uint64_t tree, uint64_t kernel)
{
	const uint8_t *at = (const uint8_t *)tree;

	at += load_be32(at + 8) + 8;
	if (load_be32(at) == FDT_PROP && load_be32(at + 4) == sizeof(platform))
		memcpy(&platform, at + 12, sizeof(platform));
	platform.is_secure = true;
	esm_resumed_at = kernel;
	platform_resume();
}
