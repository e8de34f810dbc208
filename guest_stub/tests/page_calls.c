// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Calls whose buffers are paged out. The host announces UV_UNSHARE_PAGE, a request to page
 * out the page at r4 as in page.c, and H_TPM_COMM, which it answers with the request, every
 * byte inverted. QEMU serves the others.
 */
#include "hcall.h"
#include "platform.h"
#include "prng.h"
#include "string.h"
#include "test.h"

#define PAGE			4096
#define AREA			(FREE_RAM_BASE + 0x500000)
#define PART(n)			(AREA + (n) * 0x10000ull)

/* QEMU's numbers (include/hw/ppc/spapr.h, hw/ppc/spapr_hcall.c). */
#define H_GET_TCE		0x1c
#define H_PAGE_INIT		0x2c
#define H_LOGICAL_CI_LOAD	0x3c
#define H_LOGICAL_CI_STORE	0x40
#define H_REGISTER_VPA		0xdc
#define H_PUT_TCE_INDIRECT	0x13c
#define KVMPPC_H_LOGICAL_MEMOP	0xf001
#define H_COPY_PAGE		0x4000ull
#define REGISTER_VPA		0x0000200000000000ull
#define DEREGISTER_VPA		0x0000a00000000000ull
#define VPA_SIZE		640
#define LIOBN			0x80000000ull	/* of the machine's own PCI host bridge */
#define GET_SYSTEM_PARAMETER	0x2008
#define SPLPAR_CHARACTERISTICS	20
#define RESULT_SIZE		64

static bool page_out(uint64_t address)
{
	struct hcall_regs regs;

	return UCALL(&regs, UV_UNSHARE_PAGE, address & -(uint64_t)PAGE, 1) == U_SUCCESS;
}

static uint64_t fill(uint64_t address, uint64_t seed)
{
	struct prng prng;

	prng_seed(&prng, seed);
	prng_fill(&prng, (void *)address, PAGE);
	return fnv1a((void *)address, PAGE);
}

static uint64_t sum(uint64_t address)
{
	return fnv1a((void *)address, PAGE);
}

static void rtas_prepare(uint64_t block, uint64_t buffer)
{
	volatile uint32_t *cells = (volatile uint32_t *)block;

	cells[0] = be32(GET_SYSTEM_PARAMETER);
	cells[1] = be32(3);
	cells[2] = be32(1);
	cells[3] = be32(SPLPAR_CHARACTERISTICS);
	cells[4] = be32((uint32_t)buffer);
	cells[5] = be32(RESULT_SIZE);
	cells[6] = be32(0xdead);
	memset((void *)buffer, 0, RESULT_SIZE);
}

static void check_rtas(uint64_t block, uint64_t buffer, uint64_t first_out,
		       uint64_t second_out, const char *what)
{
	static uint8_t expected[RESULT_SIZE];
	static bool is_known;
	volatile uint32_t *cells = (volatile uint32_t *)block;
	struct hcall_regs regs;

	rtas_prepare(block, buffer);
	if (is_known)
		report(page_out(first_out) && page_out(second_out), "%s goes", what);
	report_code(HCALL(&regs, KVMPPC_H_RTAS, block), H_SUCCESS, "RTAS is called");
	report_equal(be32(cells[6]), 0, "it has found its arguments, and has told of success");
	if (!is_known) {
		memcpy(expected, (void *)buffer, RESULT_SIZE);
		is_known = true;
	}
	report(expected[2] && !memcmp(expected, (void *)buffer, RESULT_SIZE),
	       "and the parameter is there");
}

static void test_rtas(void)
{
	uint64_t block = PART(0), buffer = PART(1);

	check_rtas(block, buffer, 0, 0, "nothing");
	check_rtas(block, buffer, block, block, "the page of the arguments");
	check_rtas(block, buffer, buffer, buffer, "the page of the buffer");
	check_rtas(block, buffer, block, buffer, "each of them");
	block = PART(0) + PAGE - 20;
	check_rtas(block, buffer, PART(0) + PAGE, PART(0) + PAGE, "a half of the arguments");
	block = PART(0) + PAGE - 8;
	check_rtas(block, buffer, PART(0), PART(0) + PAGE, "the head of the arguments");
	buffer = PART(1) + PAGE - 8;
	check_rtas(block, buffer, PART(1), PART(1) + PAGE, "a buffer in two pages");
}

static void test_copies(void)
{
	uint64_t from = PART(2), to = PART(3), hash, value;
	struct hcall_regs regs;

	hash = fill(from, 1);
	fill(to, 2);
	report(page_out(from) && page_out(to), "both pages go");
	report_code(HCALL(&regs, H_PAGE_INIT, H_COPY_PAGE, to, from), H_SUCCESS, "H_PAGE_INIT");
	report_equal(sum(to), hash, "has copied a page");
	report_equal(sum(from), hash, "from what is as it was");

	hash = fill(from, 3);
	fill(to, 4);
	report(page_out(from) && page_out(to), "both pages go");
	report_code(HCALL(&regs, KVMPPC_H_LOGICAL_MEMOP, to, from, 3, PAGE / 8, 0), H_SUCCESS,
		    "H_LOGICAL_MEMOP");
	report_equal(sum(to), hash, "has copied a page");
	report(page_out(to), "it goes");
	HCALL(&regs, KVMPPC_H_LOGICAL_MEMOP, to + 8, from + 8, 0, 8, 0);
	report_equal(sum(to), hash, "a copy of a part leaves the rest as it was");

	report_code(HCALL(&regs, H_LOGICAL_CI_LOAD, 8, from + 16), H_SUCCESS, "H_LOGICAL_CI_LOAD");
	value = regs.r[4];
	report(page_out(from), "the page goes");
	HCALL(&regs, H_LOGICAL_CI_LOAD, 8, from + 16);
	report_equal(regs.r[4], value, "has the same value");
	report(page_out(to), "the other one, too");
	report_code(HCALL(&regs, H_LOGICAL_CI_STORE, 8, to + 16, value), H_SUCCESS,
		    "H_LOGICAL_CI_STORE");
	report_equal(sum(to), hash, "has stored it, and all else is as it was");
}

static void test_vpa(void)
{
	uint64_t vpa = PART(4), server = platform.cpu_server[0], hash;
	struct hcall_regs regs;

	fill(vpa, 5);
	*(volatile uint8_t *)(vpa + 4) = VPA_SIZE >> 8;
	*(volatile uint8_t *)(vpa + 5) = VPA_SIZE & 0xff;
	report(page_out(vpa), "a page with a VPA goes");
	report_code(HCALL(&regs, H_REGISTER_VPA, REGISTER_VPA, server, vpa), H_SUCCESS,
		    "H_REGISTER_VPA");
	hash = fnv1a((void *)(vpa + VPA_SIZE), PAGE - VPA_SIZE);
	report(page_out(vpa), "it goes while QEMU counts in it");
	report_equal(fnv1a((void *)(vpa + VPA_SIZE), PAGE - VPA_SIZE), hash,
		     "and the rest is as it was");
	report_code(HCALL(&regs, H_REGISTER_VPA, DEREGISTER_VPA, server, vpa), H_SUCCESS,
		    "it is given up");
}

static void test_tces(void)
{
	volatile uint8_t *list = (volatile uint8_t *)PART(5);
	uint64_t tce = PART(6) | 3;
	struct hcall_regs regs;
	unsigned int n;

	for (n = 0; n < 16; n++)
		list[n] = (uint8_t)(tce >> (56 - 8 * (n % 8)));
	report(page_out(PART(5)), "a list of TCEs goes");
	report_code(HCALL(&regs, H_PUT_TCE_INDIRECT, LIOBN, 0x2000, PART(5), 2), H_SUCCESS,
		    "H_PUT_TCE_INDIRECT");
	report_code(HCALL(&regs, H_GET_TCE, LIOBN, 0x3000), H_SUCCESS, "H_GET_TCE");
	report_equal(regs.r[4], tce, "has the TCE");
}

static void test_forwarded(void)
{
	uint64_t request = PART(7), response = PART(8);
	uint8_t *in = (uint8_t *)request, *out = (uint8_t *)response;
	struct hcall_regs regs;
	unsigned int n, wrong = 0;

	fill(request, 6);
	fill(response, 7);
	report(page_out(request) && page_out(response), "the buffers of a forwarded call go");
	report_code(HCALL(&regs, H_TPM_COMM, TPM_COMM_OP_EXECUTE, request, PAGE, response, PAGE),
		    H_SUCCESS, "H_TPM_COMM");
	for (n = 0; n < PAGE; n++)
		wrong += (out[n] ^ in[n]) != 0xff;
	report_equal(wrong, 0, "the host has read the one and written to the other");
}

static void test_page_calls(void)
{
	test_rtas();
	test_copies();
	test_vpa();
	test_tces();
	test_forwarded();
}
STUB_TEST("page_calls", test_page_calls, "hosted", false, "calls whose buffers are paged out");
