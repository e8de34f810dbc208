// SPDX-License-Identifier: GPL-2.0-or-later
/* GEN_KEY: keys that the guest gets, and wrapping keys that it does not. */
#include "pks.h"
#include "string.h"
#include "test.h"

#define CANARY	0x2d

static struct pks_label label;
static struct pks_config config;

static uint32_t cost(uint64_t size)
{
	return config.objoverhead + (uint32_t)(label.size + size);
}

static bool untouched(void)
{
	return memory_is(pks_out, CANARY, PKS_BUFFER_SIZE);
}

/* A call that must fail, and change and write nothing. */
static void check_refused(unsigned int consumer, uint32_t policy, void *out, uint64_t size,
			  int64_t code, const char *why)
{
	uint32_t used = pks_used_space();

	memset(pks_out, CANARY, PKS_BUFFER_SIZE);
	report_code(pks_gen_key(consumer, &label, policy, out, size), code,
		    "GEN_KEY of %lu bytes, policy 0x%08x: %s", size, policy, why);
	report(untouched() && pks_used_space() == used, "changes nothing");
}

static void check_plain(unsigned int consumer, uint32_t policy, uint64_t size, uint32_t offset)
{
	uint32_t used = pks_used_space();
	uint8_t *out = pks_out + offset;
	struct pks_result result;
	unsigned int n, same = 0;

	memset(pks_out, CANARY, PKS_BUFFER_SIZE);
	if (!report_code(pks_gen_key(consumer, &label, policy, out, size), H_SUCCESS,
			 "GEN_KEY of %lu bytes at offset %u, policy 0x%08x, consumer %u", size,
			 offset, policy, consumer))
		return;
	report(memory_is(pks_out, CANARY, offset) &&
	       memory_is(out + size, CANARY, PKS_BUFFER_SIZE - offset - size),
	       "writes exactly these");
	for (n = 1; n < size; n++)
		same += out[n] == out[0];
	report(size < 16 || same < size / 2, "gives bytes that differ");
	report_equal(pks_used_space(), used + cost(size), "takes objoverhead + label + key");
	memcpy(pks_data, out, size);
	check_refused(consumer, policy, out, size, H_RESOURCE, "the label exists");
	check_refused(consumer, PKS_POLICY_WRAPPINGKEY, NULL, PKS_WRAPPING_KEY_SIZE, H_RESOURCE,
		      "the label exists");
	result = pks_read(consumer, &label, pks_out, PKS_BUFFER_SIZE);
	report_code(result.code, H_SUCCESS, "READ");
	report(result.r4 == size && result.r5 == policy && !memcmp(pks_out, pks_data, size),
	       "gives the key, its size and policy");
	report_code(pks_remove(consumer, &label), H_SUCCESS, "REMOVE");
	report_equal(pks_used_space(), used, "gives the space back");
}

static void test_pks_key(void)
{
	static const uint64_t sizes[] = { 1, 31, 32, 33, 64, 4096 };
	unsigned int consumer, n;
	uint32_t free_space;

	if (!pks_open())
		return;
	pks_get_config(&config);
	free_space = config.totalsize - config.usedspace;
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		pks_label_set(&label, consumer, "key");
		pks_remove(consumer, &label);
		for (n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
			if (sizes[n] > pks_greatest_object(&config))
				check_refused(consumer, 0, pks_out, sizes[n], H_P6,
					      "above the greatest");
			else if (cost(sizes[n]) > free_space)
				check_refused(consumer, 0, pks_out, sizes[n], H_NO_MEM,
					      "no space");
			else
				check_plain(consumer, 0, sizes[n], 4093 + n);
		}
	}
	check_plain(PKS_CONSUMER_OS, PKS_POLICY_WORLDREADABLE, 32, 0);
	check_plain(PKS_CONSUMER_OS, PKS_POLICY_TRANSIENT, 32, 1);
	check_plain(PKS_CONSUMER_OS, PKS_POLICY_PWSET, 32, 2);
	if (cost(pks_greatest_object(&config)) > free_space)
		check_refused(PKS_CONSUMER_OS, 0, pks_out, pks_greatest_object(&config), H_NO_MEM,
			      "no space");
	check_refused(PKS_CONSUMER_OS, 0, pks_out, pks_greatest_object(&config) + 1, H_P6,
		      "above the greatest");
	check_refused(PKS_CONSUMER_OS, 0, pks_out, 0, H_P6, "zero");
	check_refused(PKS_CONSUMER_OS, PKS_POLICY_SIGNEDUPDATE, pks_out, 32, H_P4,
		      "made by SIGNED_UPDATE only");
	check_refused(PKS_CONSUMER_OS, PKS_POLICY_HVPROVISIONED, pks_out, 32, H_P4,
		      "made by the hypervisor only");
}
STUB_TEST("pks_key", test_pks_key, "pks", true, "GEN_KEY of keys that the guest gets");

/* READ of a wrapping key, by whoever: nothing but, to its owner, the policy. */
static void check_closed(unsigned int consumer, uint32_t policy, uint64_t room)
{
	struct pks_result result;

	memset(pks_out, CANARY, PKS_BUFFER_SIZE);
	result = pks_read(consumer, &label, pks_out, room);
	report_code(result.code, H_AUTHORITY, "READ into %lu bytes", room);
	report_equal(result.r5, policy, "tells the policy");
	report(untouched(), "and writes nothing");
}

static void check_wrapping(unsigned int consumer, uint32_t policy, void *out, const char *where)
{
	uint32_t all = PKS_POLICY_WRAPPINGKEY | policy, used = pks_used_space();
	static uint8_t auth[PAGE_SIZE] __attribute__((aligned(4096)));
	struct pks_result result;
	struct hcall_regs regs;
	int64_t code;

	memset(pks_out, CANARY, PKS_BUFFER_SIZE);
	if (!report_code(pks_gen_key(consumer, &label, all, out, PKS_WRAPPING_KEY_SIZE),
			 H_SUCCESS, "GEN_KEY, policy 0x%08x, consumer %u, out %s", all, consumer,
			 where))
		return;
	report(untouched(), "gives nothing");
	report_equal(pks_used_space(), used + cost(PKS_WRAPPING_KEY_SIZE),
		     "takes objoverhead + label + key");
	/* Linux takes this for success: it is its second boot. */
	check_refused(consumer, all, NULL, PKS_WRAPPING_KEY_SIZE, H_RESOURCE, "once more");
	check_refused(consumer, 0, pks_out, PKS_WRAPPING_KEY_SIZE, H_RESOURCE,
		      "the label is in use for a plain key, too");
	report_code(pks_write(consumer, &label, 0, pks_data, 32), H_RESOURCE, "and for WRITE");
	check_closed(consumer, all, PKS_BUFFER_SIZE);
	check_closed(consumer, all, 0);
	pks_auth_fill(auth, consumer, "not the password of anybody here", 32);
	code = HCALL(&regs, H_PKS_READ_OBJECT, (uintptr_t)auth, (uintptr_t)label.bytes, label.size,
		     (uintptr_t)pks_out, 4096);
	report_code(code, H_AUTHORITY, "READ with a wrong password");
	report(regs.r[5] != all, "does not tell the policy");
	result = pks_confirm(consumer, &label);
	report_code(result.code, H_SUCCESS, "CONFIRM");
	report_equal(result.r4, 1, "says flushed");
	report_code(pks_remove(consumer, &label), H_SUCCESS, "REMOVE");
	report_equal(pks_used_space(), used, "gives the space back");
	report_code(pks_read(consumer, &label, pks_out, 32).code, H_NOT_FOUND, "it is gone");
}

static void test_pks_wrapping_key(void)
{
	static const uint64_t sizes[] = { 0, 1, 16, 31, 33, 64, 1ull << 32,
					  1ull << 32 | PKS_WRAPPING_KEY_SIZE };
	unsigned int consumer, n;

	if (!pks_open())
		return;
	pks_get_config(&config);
	if (!(config.supportedpolicies & PKS_POLICY_WRAPPINGKEY)) {
		report_skip("WRAPPINGKEY is not among supportedpolicies");
		return;
	}
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		pks_label_set(&label, consumer, "wrapping");
		pks_remove(consumer, &label);
		check_wrapping(consumer, 0, NULL, "0 as Linux has it");
	}
	check_wrapping(PKS_CONSUMER_OS, 0, pks_out, "in RAM");
	check_wrapping(PKS_CONSUMER_OS, 0, (void *)platform.ram_end, "past RAM");
	check_wrapping(PKS_CONSUMER_OS, 0, (void *)platform.mmio_base, "in MMIO");
	check_wrapping(PKS_CONSUMER_OS, 0, (void *)~0ull, "the last byte below 2^64");
	check_wrapping(PKS_CONSUMER_OS, PKS_POLICY_TRANSIENT, NULL, "0");
	check_wrapping(PKS_CONSUMER_OS, PKS_POLICY_PWSET, NULL, "0");
	for (n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++)
		check_refused(PKS_CONSUMER_OS, PKS_POLICY_WRAPPINGKEY, NULL, sizes[n], H_P6,
			      "not a wrapping key's size");
	check_refused(PKS_CONSUMER_OS, PKS_POLICY_WRAPPINGKEY | PKS_POLICY_WORLDREADABLE, NULL,
		      PKS_WRAPPING_KEY_SIZE, H_P4, "nobody reads a wrapping key");
	check_refused(PKS_CONSUMER_OS, PKS_POLICY_WRAPPINGKEY | PKS_POLICY_SIGNEDUPDATE, NULL,
		      PKS_WRAPPING_KEY_SIZE, H_P4, "a signed update does not change one");
	check_refused(PKS_CONSUMER_OS, PKS_POLICY_WRAPPINGKEY | PKS_POLICY_HVPROVISIONED, NULL,
		      PKS_WRAPPING_KEY_SIZE, H_P4, "made by the hypervisor only");
}
STUB_TEST("pks_wrapping_key", test_pks_wrapping_key, "pks", true,
	  "GEN_KEY of keys that the guest does not get");
