// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * H_PKS_GET_CONFIG: the structure, and callers of every length that kernels have used.
 * The option kbytes=N says what totalsize must be.
 */
#include "pks.h"
#include "string.h"
#include "test.h"

#define CANARY		0xc3
#define CANARY_SIZE	64

/* Calls with exactly size bytes, at this offset in a page, between two canaries. */
static int64_t call_with(uint32_t offset, uint32_t size, uint8_t **structure)
{
	uint8_t *at = pks_out + CANARY_SIZE + offset;
	struct hcall_regs regs;

	memset(pks_out, CANARY, CANARY_SIZE + offset + size + CANARY_SIZE);
	*structure = at;
	return HCALL(&regs, H_PKS_GET_CONFIG, (uintptr_t)at, size);
}

static bool canaries_intact(uint32_t offset, uint32_t size)
{
	return memory_is(pks_out, CANARY, CANARY_SIZE + offset) &&
	       memory_is(pks_out + CANARY_SIZE + offset + size, CANARY, CANARY_SIZE);
}

static void check_caller(uint32_t offset, uint32_t size, const uint8_t *reference)
{
	uint32_t known = size < PKS_CONFIG_KNOWN_SIZE ? size : PKS_CONFIG_KNOWN_SIZE;
	uint8_t *at;
	int64_t code = call_with(offset, size, &at);

	if (!report_code(code, H_SUCCESS, "a caller with %u bytes at offset %u", size, offset))
		return;
	report(!memcmp(at, reference, known), "gets the same fields");
	report(memory_is(at + known, 0, size - known), "and zeros in the rest");
	report(canaries_intact(offset, size), "bytes around its structure are untouched");
}

static void check_fields(const struct pks_config *c)
{
	const uint32_t known_policies =
		PKS_POLICY_OSSECBOOTAUDIT | PKS_POLICY_OSSECBOOTENFORCE | PKS_POLICY_PWSET |
		PKS_POLICY_WORLDREADABLE | PKS_POLICY_IMMUTABLE | PKS_POLICY_TRANSIENT |
		PKS_POLICY_SIGNEDUPDATE | PKS_POLICY_WRAPPINGKEY | PKS_POLICY_HVPROVISIONED;

	report_info("version=%u flags=0x%x objoverhead=%u maxpwsize=%u maxobjlabelsize=%u",
		    c->version, c->flags, c->objoverhead, c->maxpwsize, c->maxobjlabelsize);
	report_info("maxobjsize=%u totalsize=%u usedspace=%u policies=0x%x large=%u",
		    c->maxobjsize, c->totalsize, c->usedspace, c->supportedpolicies,
		    c->maxlargeobjectsize);
	report_info("signedupdatealgorithms=0x%lx wrappingfeatures=0x%lx",
		    c->signedupdatealgorithms, c->wrappingfeatures);

	report(c->version >= 1 && c->version <= 3, "version is 1 to 3");
	report_equal(c->reserved, 0, "reserved bytes are 0");
	report_equal(c->flags & ~PKS_CONFIG_FLAG_WRAP, 0, "unknown flags are 0");
	/* The bounds below are those of Linux _plpks_get_config(). */
	report(c->maxpwsize >= PKS_MIN_PASSWORD_SIZE, "Linux takes maxpwsize");
	report(c->maxobjlabelsize >= PKS_MAX_LABEL_SIZE && c->maxobjlabelsize <= 32767,
	       "Linux takes maxobjlabelsize");
	report(c->totalsize >= 4096, "Linux takes totalsize");
	if (c->version >= 3 && c->maxlargeobjectsize >= 65536)
		report_equal(c->maxobjsize, 0xffff, "Linux takes maxobjsize");
	else
		report(c->maxobjsize > 0, "there is a greatest object");
	report(c->usedspace <= c->totalsize, "no more is used than there is");
	report_equal(c->supportedpolicies & ~known_policies, 0, "policies are known ones");
	report(c->supportedpolicies & PKS_POLICY_WORLDREADABLE, "WORLDREADABLE is one");
	if (arg_text("kbytes"))
		report_equal(c->totalsize, arg_number("kbytes", 0) * 1024,
			     "totalsize is keystore_kbytes");
}

static void test_pks_config(void)
{
	static const uint32_t sizes[] = {
		PKS_CONFIG_MIN_SIZE, PKS_CONFIG_MIN_SIZE + 1, PKS_CONFIG_KNOWN_SIZE - 1,
		PKS_CONFIG_KNOWN_SIZE, PKS_CONFIG_KNOWN_SIZE + 1, 64, PKS_CONFIG_SIZE_6_12,
		PKS_CONFIG_SIZE_7_2, 4096, 65536,
	};
	static uint8_t reference[PKS_CONFIG_SIZE_7_2];
	struct pks_config config;
	struct hcall_regs regs;
	int64_t code;
	unsigned int n;

	if (!pks_announced())
		return;
	code = HCALL(&regs, H_PKS_GET_CONFIG, (uintptr_t)reference, sizeof(reference));
	if (!report_code(code, H_SUCCESS, "the keystore answers"))
		return;
	pks_parse_config(reference, &config);
	check_fields(&config);
	for (n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++)
		check_caller(0, sizes[n], reference);
	for (n = 1; n < 8; n++)
		check_caller(n, PKS_CONFIG_SIZE_6_12, reference);
	/* Linux's 520-byte slab object may cross a page with slab debugging on. */
	check_caller(4096 - CANARY_SIZE - 16, PKS_CONFIG_SIZE_7_2, reference);
}
STUB_TEST("pks_config", test_pks_config, "pks", true, "GET_CONFIG and its callers");

/* A partition with keystore_kbytes = 0: announced, and everything is refused. */
static void test_pks_disabled(void)
{
	struct pks_label label;
	struct pks_config config;
	static uint8_t page[4096] __attribute__((aligned(4096)));
	static const char *const names[] = { "WRAP", "UNWRAP", "SIGNED_UPDATE" };
	struct pks_result results[3];
	unsigned int n;

	if (!pks_announced())
		return;
	pks_label_set(&label, PKS_CONSUMER_OS, "disabled");
	memset(pks_out, CANARY, 4096);
	memset(page, CANARY, sizeof(page));
	report_code(pks_get_config(&config), H_STATE, "GET_CONFIG");
	report_code(pks_gen_password(PKS_CONSUMER_OS, page, 32), H_STATE, "GEN_PASSWORD");
	report_code(pks_set_password(PKS_CONSUMER_OS, page, 32), H_STATE, "SET_PASSWORD");
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 8), H_STATE, "WRITE");
	report_code(pks_read(PKS_CONSUMER_OS, &label, pks_out, 4096).code, H_STATE, "READ");
	report_code(pks_remove(PKS_CONSUMER_OS, &label), H_STATE, "REMOVE");
	report_code(pks_confirm(PKS_CONSUMER_OS, &label).code, H_STATE, "CONFIRM");
	report_code(pks_gen_key(PKS_CONSUMER_OS, &label, 0, pks_out, 32), H_STATE, "GEN_KEY");
	results[0] = pks_wrap(PKS_CONSUMER_OS, &label, PKS_WRAP_DEFAULT, pks_data, 8, pks_out,
			      4096);
	results[1] = pks_unwrap(PKS_CONSUMER_OS, pks_data, 2048, pks_out, 4096);
	results[2] = pks_signed_update(PKS_CONSUMER_OS, &label, PKS_POLICY_SIGNEDUPDATE, 0,
				       pks_data, 64);
	for (n = 0; n < 3; n++) {
		report_code(results[n].code, H_STATE, "%s", names[n]);
		report_equal(results[n].r4, 0, "no token is left");
	}
	report(memory_is(pks_out, CANARY, 4096) && memory_is(page, CANARY, sizeof(page)),
	       "nothing was written");
	/* The state comes before the arguments. */
	report_code(pks_gen_password(0, page, 0), H_STATE, "before bad arguments");
}
STUB_TEST("pks_disabled", test_pks_disabled, "disabled", false,
	  "a partition whose keystore has no space");
