// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Policies in operation. What cannot be removed is made TRANSIENT too, so that the next
 * reset takes it away. What a reset changes is tests/persist.c.
 */
#include "console.h"
#include "pks.h"
#include "string.h"
#include "test.h"

#define CANARY	0x69

#define WRONG_PASSWORD	"certainly not the password, though as long as one may be"

static struct pks_config config;
static struct pks_label label;
static uint8_t page[4096] __attribute__((aligned(4096)));

/* A call with an authorization made by hand. */
static struct pks_result call_with(uint64_t number, const void *auth)
{
	struct hcall_regs regs;
	int64_t code = HCALL(&regs, number, (uintptr_t)auth, (uintptr_t)label.bytes, label.size,
			     (uintptr_t)pks_out, 4096);

	return (struct pks_result){ code, regs.r[4], regs.r[5] };
}

static const void *wrong_auth(void)
{
	pks_auth_fill(page, PKS_CONSUMER_OS, WRONG_PASSWORD, PKS_MIN_PASSWORD_SIZE);
	return page;
}

static const void *empty_auth(void)
{
	pks_auth_fill(page, PKS_CONSUMER_OS, NULL, 0);
	return page;
}

static bool supported(uint32_t policy, const char *name)
{
	if ((config.supportedpolicies & policy) == policy)
		return true;
	report_skip("%s is not among supportedpolicies", name);
	return false;
}

static bool create(uint32_t policy, const char *name)
{
	pks_label_set(&label, PKS_CONSUMER_OS, name);
	pks_remove(PKS_CONSUMER_OS, &label);
	memcpy(pks_data, name, strlen(name) + 1);
	return report_code(pks_write(PKS_CONSUMER_OS, &label, policy, pks_data, 40), H_SUCCESS,
			   "WRITE %s, policy 0x%08x", name, policy);
}

static void check_readable(const void *auth, uint32_t policy, const char *who)
{
	struct pks_result result;

	memset(pks_out, CANARY, 4096);
	result = call_with(H_PKS_READ_OBJECT, auth);
	report_code(result.code, H_SUCCESS, "READ %s", who);
	report_equal(result.r5, policy, "tells the policy");
	report(!memcmp(pks_out, pks_data, 40) && memory_is(pks_out + 40, CANARY, 4056),
	       "and gives the data");
}

static void check_closed(uint64_t number, const void *auth, const char *how)
{
	uint32_t used = pks_used_space();

	memset(pks_out, CANARY, 4096);
	report_code(call_with(number, auth).code, H_AUTHORITY, "%s %s", hcall_name(number), how);
	report(memory_is(pks_out, CANARY, 4096) && pks_used_space() == used, "changes nothing");
}

static void test_pks_policy(void)
{
	uint32_t used;
	struct pks_result result;

	if (!pks_open())
		return;
	pks_get_config(&config);

	if (create(0, "none")) {
		used = pks_used_space();
		check_readable(pks_auth(PKS_CONSUMER_OS), 0, "with the password");
		check_closed(H_PKS_READ_OBJECT, wrong_auth(), "with a wrong one");
		check_closed(H_PKS_READ_OBJECT, empty_auth(), "with none");
		report_equal(pks_used_space(), used, "reading takes no space");
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
	}
	if (supported(PKS_POLICY_WORLDREADABLE, "WORLDREADABLE") &&
	    create(PKS_POLICY_WORLDREADABLE, "world")) {
		check_readable(pks_auth(PKS_CONSUMER_OS), PKS_POLICY_WORLDREADABLE,
			       "with the password");
		check_readable(wrong_auth(), PKS_POLICY_WORLDREADABLE, "with a wrong one");
		check_readable(empty_auth(), PKS_POLICY_WORLDREADABLE, "with none");
		check_closed(H_PKS_REMOVE_OBJECT, wrong_auth(), "with a wrong password");
		check_closed(H_PKS_REMOVE_OBJECT, empty_auth(), "with none");
		page[PKS_AUTH_VERSION] = 2;
		report_code(call_with(H_PKS_READ_OBJECT, page).code, H_PARAMETER,
			    "a malformed authorization stays one");
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
	}
	if (supported(PKS_POLICY_PWSET, "PWSET") && create(PKS_POLICY_PWSET, "pwset")) {
		check_readable(pks_auth(PKS_CONSUMER_OS), PKS_POLICY_PWSET, "with the password");
		check_closed(H_PKS_READ_OBJECT, empty_auth(), "with none");
		check_closed(H_PKS_REMOVE_OBJECT, wrong_auth(), "with a wrong one");
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
	}
	if (supported(PKS_POLICY_PWSET | PKS_POLICY_WORLDREADABLE, "PWSET, WORLDREADABLE") &&
	    create(PKS_POLICY_PWSET | PKS_POLICY_WORLDREADABLE, "pwset-world")) {
		check_readable(empty_auth(), PKS_POLICY_PWSET | PKS_POLICY_WORLDREADABLE,
			       "with none, once the owner has one");
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
	}
	if (supported(PKS_POLICY_TRANSIENT, "TRANSIENT") &&
	    create(PKS_POLICY_TRANSIENT, "transient")) {
		check_readable(pks_auth(PKS_CONSUMER_OS), PKS_POLICY_TRANSIENT,
			       "with the password");
		result = pks_confirm(PKS_CONSUMER_OS, &label);
		report_code(result.code, H_SUCCESS, "CONFIRM");
		report_equal(result.r4, 1, "at once: there is nothing to flush");
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
	}
	if (supported(PKS_POLICY_IMMUTABLE | PKS_POLICY_TRANSIENT, "IMMUTABLE, TRANSIENT") &&
	    create(PKS_POLICY_IMMUTABLE | PKS_POLICY_TRANSIENT, "immutable")) {
		check_closed(H_PKS_REMOVE_OBJECT, pks_auth(PKS_CONSUMER_OS), "though permitted");
		report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 1), H_RESOURCE,
			    "WRITE over it");
		check_readable(pks_auth(PKS_CONSUMER_OS),
			       PKS_POLICY_IMMUTABLE | PKS_POLICY_TRANSIENT, "all the same");
	}
}
STUB_TEST("pks_policy", test_pks_policy, "pks", true, "what a policy opens and closes");

/* Objects that want a secure boot state: 1 audit, 2 enforce (root ibm,secure-boot). */
static void check_secure_boot(uint32_t policy, const char *name, bool open)
{
	uint32_t all = policy | PKS_POLICY_TRANSIENT;

	if (!supported(all, name) || !create(all, name))
		return;
	if (open) {
		check_readable(pks_auth(PKS_CONSUMER_OS), all, "in this state");
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
		return;
	}
	check_closed(H_PKS_READ_OBJECT, pks_auth(PKS_CONSUMER_OS), "in this state");
	check_closed(H_PKS_REMOVE_OBJECT, pks_auth(PKS_CONSUMER_OS), "in this state");
}

static void test_pks_secure_boot(void)
{
	int state = platform.secure_boot < 0 ? 0 : platform.secure_boot;

	if (!pks_open())
		return;
	pks_get_config(&config);
	report_info("secure boot state %d", state);
	check_secure_boot(PKS_POLICY_OSSECBOOTAUDIT, "secboot-audit", state >= 1);
	check_secure_boot(PKS_POLICY_OSSECBOOTENFORCE, "secboot-enforce", state == 2);
}
STUB_TEST("pks_secure_boot", test_pks_secure_boot, "pks", true,
	  "objects bound to the secure boot state");

static void test_pks_policy_bits(void)
{
	static const uint32_t by_others[] = {
		PKS_POLICY_SIGNEDUPDATE, PKS_POLICY_WRAPPINGKEY, PKS_POLICY_HVPROVISIONED,
		PKS_POLICY_WORLDREADABLE | PKS_POLICY_WRAPPINGKEY,
		PKS_POLICY_WORLDREADABLE | PKS_POLICY_SIGNEDUPDATE,
	};
	struct hcall_regs regs;
	unsigned int n;
	uint32_t used;

	if (!pks_open())
		return;
	pks_get_config(&config);
	used = config.usedspace;
	pks_label_set(&label, PKS_CONSUMER_OS, "bits");
	pks_remove(PKS_CONSUMER_OS, &label);
	for (n = 0; n < sizeof(by_others) / sizeof(by_others[0]); n++)
		report_code(pks_write(PKS_CONSUMER_OS, &label, by_others[n], pks_data, 8), H_P4,
			    "WRITE does not make policy 0x%08x", by_others[n]);
	for (n = 0; n < 64; n++) {
		uint64_t bit = 1ull << n;

		if (bit & config.supportedpolicies)
			continue;
		report_code(HCALL(&regs, H_PKS_WRITE_OBJECT,
				  (uintptr_t)pks_auth(PKS_CONSUMER_OS), (uintptr_t)label.bytes,
				  label.size, bit, (uintptr_t)pks_data, 8),
			    H_P4, "policy bit 0x%lx is refused", bit);
	}
	report_equal(pks_used_space(), used, "nothing was written");
	report_code(pks_read(PKS_CONSUMER_OS, &label, pks_out, 64).code, H_NOT_FOUND,
		    "nothing is there");
}
STUB_TEST("pks_policy_bits", test_pks_policy_bits, "pks", true, "which policies WRITE takes");
