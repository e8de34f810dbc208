// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What outlives a boot. persist-write leaves objects behind; persist-check, in a later
 * boot (of this QEMU or another, over the same store), finds the ones that must be there
 * and not the others. reboot does it within one QEMU. Options:
 *	seed=N		contents of the objects (both tests alike)
 *	clean=1		persist-check removes what it has found
 *	reboots=N	how often the test "reboot" restarts the machine
 */
#include "console.h"
#include "pks.h"
#include "prng.h"
#include "string.h"
#include "test.h"

struct object {
	unsigned int consumer;
	const char *name;
	uint32_t policy;
	uint32_t size;
};

static const struct object objects[] = {
	{ PKS_CONSUMER_FIRMWARE, "persist-firmware", 0, 1 },
	{ PKS_CONSUMER_BOOTLOADER, "persist-bootloader", 0, 100 },
	{ PKS_CONSUMER_OS, "persist-os", 0, 4096 },
	{ PKS_CONSUMER_OS, "persist-world", PKS_POLICY_WORLDREADABLE, 33 },
	{ PKS_CONSUMER_OS, "persist-pwset", PKS_POLICY_PWSET, 17 },
	{ PKS_CONSUMER_OS, "persist-pwset-world",
	  PKS_POLICY_PWSET | PKS_POLICY_WORLDREADABLE, 18 },
	{ PKS_CONSUMER_OS, "persist-transient", PKS_POLICY_TRANSIENT, 64 },
};

#define OBJECT_COUNT (sizeof(objects) / sizeof(objects[0]))

static struct pks_label label;

/* A partition may take only smaller objects than we would like. */
static uint32_t object_size(const struct object *object)
{
	struct pks_config config;

	if (pks_get_config(&config) == H_SUCCESS && object->size > config.maxobjsize)
		return config.maxobjsize;
	return object->size;
}

static void expected_data(const struct object *object)
{
	struct prng prng;

	prng_seed(&prng, arg_number("seed", 1) * 100 + (uint64_t)(object - objects));
	prng_fill(&prng, pks_data, object_size(object));
}

/*
 * A wrapping key, and what was wrapped with it: the blob is an object itself, as Linux's
 * users keep theirs in files.
 */
#define WRAPPED_SIZE	32

static struct pks_label key;

static void wrapped_data(uint8_t *data)
{
	struct prng prng;

	prng_seed(&prng, arg_number("seed", 1) * 100 + 99);
	prng_fill(&prng, data, WRAPPED_SIZE);
}

static bool can_wrap(void)
{
	struct pks_config config;

	pks_label_set(&key, PKS_CONSUMER_OS, "persist-key");
	pks_label_set(&label, PKS_CONSUMER_OS, "persist-blob");
	return pks_get_config(&config) == H_SUCCESS && config.flags & PKS_CONFIG_FLAG_WRAP &&
	       config.maxobjsize >= WRAPPED_SIZE + PKS_WRAP_OVERHEAD;
}

static void write_wrapped(void)
{
	struct pks_result result;

	if (!can_wrap())
		return;
	pks_remove(PKS_CONSUMER_OS, &label);
	pks_remove(PKS_CONSUMER_OS, &key);
	report_code(pks_gen_key(PKS_CONSUMER_OS, &key, PKS_POLICY_WRAPPINGKEY, NULL,
				PKS_WRAPPING_KEY_SIZE), H_SUCCESS, "GEN_KEY persist-key");
	wrapped_data(pks_data);
	result = pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT, pks_data, WRAPPED_SIZE, pks_out,
			  PKS_BUFFER_SIZE);
	report_code(result.code, H_SUCCESS, "WRAP");
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_out, result.r5), H_SUCCESS,
		    "WRITE persist-blob");
	result = pks_confirm_wait(PKS_CONSUMER_OS, &key);
	report(result.code == H_SUCCESS && result.r4 == 1, "CONFIRM of the key");
	result = pks_confirm_wait(PKS_CONSUMER_OS, &label);
	report(result.code == H_SUCCESS && result.r4 == 1, "CONFIRM of the blob");
}

static void check_wrapped(void)
{
	static uint8_t blob[WRAPPED_SIZE + PKS_WRAP_OVERHEAD];
	struct pks_result result;

	if (!can_wrap())
		return;
	/* The answer of each boot but the first, as Linux knows. */
	report_code(pks_gen_key(PKS_CONSUMER_OS, &key, PKS_POLICY_WRAPPINGKEY, NULL,
				PKS_WRAPPING_KEY_SIZE), H_RESOURCE, "GEN_KEY persist-key");
	result = pks_read(PKS_CONSUMER_OS, &label, blob, sizeof(blob));
	report_code(result.code, H_SUCCESS, "READ persist-blob");
	wrapped_data(pks_data);
	result = pks_unwrap(PKS_CONSUMER_OS, blob, sizeof(blob), pks_out, WRAPPED_SIZE);
	report_code(result.code, H_SUCCESS, "UNWRAP of it");
	report(result.r5 == WRAPPED_SIZE && !memcmp(pks_out, pks_data, WRAPPED_SIZE), "its data");
	if (arg_number("clean", 0)) {
		pks_remove(PKS_CONSUMER_OS, &label);
		pks_remove(PKS_CONSUMER_OS, &key);
	}
}

static void test_persist_write(void)
{
	struct pks_config config;
	unsigned int n;

	if (!pks_open())
		return;
	pks_get_config(&config);
	for (n = 0; n < OBJECT_COUNT; n++) {
		const struct object *object = &objects[n];
		struct pks_result result;

		if (object->policy & ~config.supportedpolicies)
			continue;
		pks_label_set(&label, object->consumer, object->name);
		pks_remove(object->consumer, &label);
		expected_data(object);
		if (!report_code(pks_write(object->consumer, &label, object->policy, pks_data,
					   object_size(object)), H_SUCCESS, "WRITE %s", object->name))
			continue;
		result = pks_confirm_wait(object->consumer, &label);
		report_code(result.code, H_SUCCESS, "CONFIRM %s", object->name);
		report_equal(result.r4, 1, "is flushed");
	}
	write_wrapped();
}
STUB_TEST("persist-write", test_persist_write, "persist", false,
	  "leaves objects for persist-check");

static void check_object(const struct object *object)
{
	uint32_t size = object_size(object);
	struct pks_result result;

	pks_label_set(&label, object->consumer, object->name);
	expected_data(object);
	memset(pks_out, 0, size);
	result = pks_read(object->consumer, &label, pks_out, PKS_BUFFER_SIZE);
	if (!report_code(result.code, H_SUCCESS, "READ %s", object->name))
		return;
	report_equal(result.r4, size, "its size");
	report_equal(result.r5, object->policy, "its policy");
	report(!memcmp(pks_out, pks_data, size), "its data");
}

static void check_refused(const struct object *object, int64_t code, const char *why)
{
	pks_label_set(&label, object->consumer, object->name);
	memset(pks_out, 0, 64);
	report_code(pks_read(object->consumer, &label, pks_out, PKS_BUFFER_SIZE).code, code,
		    "READ %s: %s", object->name, why);
	report(memory_is(pks_out, 0, 64), "gives nothing");
	report_code(pks_remove(object->consumer, &label), code, "REMOVE of it");
}

static void check_all(const struct pks_config *config, bool has_passwords)
{
	unsigned int n;

	for (n = 0; n < OBJECT_COUNT; n++) {
		const struct object *object = &objects[n];

		if (object->policy & ~config->supportedpolicies)
			continue;
		if (object->policy & PKS_POLICY_TRANSIENT)
			check_refused(object, H_NOT_FOUND, "did not outlive its boot");
		else if (object->policy & PKS_POLICY_PWSET && !has_passwords)
			check_refused(object, H_AUTHORITY, "closed until there is a password");
		else
			check_object(object);
	}
}

static void test_persist_check(void)
{
	struct pks_config config;
	unsigned int n;

	if (!pks_announced())
		return;
	if (!report_code(pks_get_config(&config), H_SUCCESS, "the keystore answers"))
		return;
	/* Passwords did not outlive the boot: the empty one is right again. */
	if (!pks_has_password(PKS_CONSUMER_OS))
		check_all(&config, false);
	if (!pks_open())
		return;
	check_all(&config, true);
	check_wrapped();
	for (n = 0; n < OBJECT_COUNT && arg_number("clean", 0); n++) {
		pks_label_set(&label, objects[n].consumer, objects[n].name);
		pks_remove(objects[n].consumer, &label);
	}
}
STUB_TEST("persist-check", test_persist_check, "persist", false,
	  "finds what persist-write left in an earlier boot");

/* Counts boots in an object; passwords and TRANSIENT objects must be gone in each. */
static void test_reboot(void)
{
	uint64_t wanted = arg_number("reboots", 3), count = 0;
	static struct pks_label transient;
	struct pks_result result;
	uint8_t number[8];

	if (!pks_announced())
		return;
	pks_label_set(&label, PKS_CONSUMER_OS, "reboot-count");
	pks_label_set(&transient, PKS_CONSUMER_OS, "reboot-transient");
	result = pks_read(PKS_CONSUMER_OS, &label, number, sizeof(number));
	if (result.code == H_SUCCESS && result.r4 == sizeof(number))
		count = load_be64(number);
	report_info("boot %lu of %lu", count + 1, wanted + 1);
	if (!pks_open())
		return;
	report(true, "each boot gives new passwords");
	if (!report_code(pks_read(PKS_CONSUMER_OS, &transient, pks_out, 64).code, H_NOT_FOUND,
			 "the TRANSIENT object of the last boot is gone"))
		return;
	report_code(pks_write(PKS_CONSUMER_OS, &transient, PKS_POLICY_TRANSIENT, pks_data, 32),
		    H_SUCCESS, "a TRANSIENT object for this one");
	pks_remove(PKS_CONSUMER_OS, &label);
	if (count >= wanted) {
		report(true, "restarted %lu times", count);
		return;
	}
	store_be64(number, count + 1);
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, number, sizeof(number)), H_SUCCESS,
		    "the count is written");
	result = pks_confirm_wait(PKS_CONSUMER_OS, &label);
	if (report(result.code == H_SUCCESS && result.r4 == 1, "and flushed"))
		stub_reboot();
}
STUB_TEST("reboot", test_reboot, "persist", false, "restarts the machine reboots=N times");
