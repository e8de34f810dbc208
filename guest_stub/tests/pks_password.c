// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Passwords: each consumer has its own, from GEN_PASSWORD or SET_PASSWORD until the next
 * reset; before that, an empty one is accepted. Must be the first test of a boot that
 * sets any, since none can be taken back.
 */
#include "pks.h"
#include "string.h"
#include "test.h"

#define CANARY	0x3c

static uint8_t page[2 * 4096] __attribute__((aligned(4096)));
static struct pks_label label;

/* WRITE with an authorization made by hand. */
static int64_t write_as(unsigned int consumer, const void *password, uint16_t size)
{
	struct hcall_regs regs;

	pks_auth_fill(page + 4096, consumer, password, size);
	return HCALL(&regs, H_PKS_WRITE_OBJECT, (uintptr_t)(page + 4096),
		     (uintptr_t)label.bytes, label.size, 0, (uintptr_t)pks_data, 8);
}

static int64_t call_as(uint64_t number, unsigned int consumer, const void *password,
		       uint16_t size)
{
	struct hcall_regs regs;

	pks_auth_fill(page + 4096, consumer, password, size);
	return HCALL(&regs, number, (uintptr_t)(page + 4096), (uintptr_t)label.bytes,
		     label.size, (uintptr_t)pks_out, 4096);
}

static void check_unset(unsigned int consumer)
{
	uint32_t used;

	pks_label_set(&label, consumer, "password-unset");
	call_as(H_PKS_REMOVE_OBJECT, consumer, NULL, 0);
	used = pks_used_space();
	report_code(write_as(consumer, page, 32), H_AUTHORITY,
		    "consumer %u without a password: a password is refused", consumer);
	report_equal(pks_used_space(), used, "and nothing is written");
	report_code(write_as(consumer, NULL, 0), H_SUCCESS,
		    "consumer %u without a password: an empty one is accepted", consumer);
	report_code(call_as(H_PKS_READ_OBJECT, consumer, NULL, 0), H_SUCCESS, "to read");
	report_code(call_as(H_PKS_CONFIRM_OBJECT_FLUSHED, consumer, NULL, 0), H_SUCCESS,
		    "to confirm");
	report_code(call_as(H_PKS_REMOVE_OBJECT, consumer, NULL, 0), H_SUCCESS, "to remove");
	report_equal(pks_used_space(), used, "and the space is given back");
}

/* What was wrapped before there was a password opens when there is one. */
static struct pks_label key;
static uint8_t wrapped[32 + PKS_WRAP_OVERHEAD];

static void check_wrap_unset(void)
{
	struct pks_result result;

	pks_label_set(&key, PKS_CONSUMER_OS, "password-key");
	pks_remove(PKS_CONSUMER_OS, &key);
	report_code(pks_gen_key(PKS_CONSUMER_OS, &key, PKS_POLICY_WRAPPINGKEY, NULL,
				PKS_WRAPPING_KEY_SIZE), H_SUCCESS,
		    "a wrapping key without a password");
	memset(pks_data, 0x77, 32);
	result = pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT, pks_data, 32, wrapped,
			  sizeof(wrapped));
	report_code(result.code, H_SUCCESS, "WRAP without one");
	memset(pks_out, CANARY, 64);
	result = pks_unwrap(PKS_CONSUMER_OS, wrapped, sizeof(wrapped), pks_out, 32);
	report_code(result.code, H_AUTHORITY, "UNWRAP wants the consumer to have one");
	report(memory_is(pks_out, CANARY, 64) && !result.r4, "and gives nothing");
}

static void check_wrap_set(void)
{
	struct pks_result result;

	result = pks_unwrap(PKS_CONSUMER_OS, wrapped, sizeof(wrapped), pks_out, 32);
	report_code(result.code, H_SUCCESS, "UNWRAP once there is a password");
	report(memory_is(pks_out, 0x77, 32), "gives the data");
	report_code(pks_remove(PKS_CONSUMER_OS, &key), H_SUCCESS, "the key is removed");
}

/* GEN_PASSWORD writes exactly size bytes, which differ from each other. */
static void check_generate(unsigned int consumer, uint16_t size, uint32_t offset)
{
	uint8_t *at = page + offset;
	unsigned int n, same = 0;

	memset(page, CANARY, sizeof(page));
	if (!report_code(pks_gen_password(consumer, at, size), H_SUCCESS,
			 "GEN_PASSWORD of %u bytes at offset %u for consumer %u", size, offset,
			 consumer))
		return;
	for (n = 1; n < size; n++)
		same += at[n] == at[0];
	report(same < size / 2u, "gives bytes that differ");
	report(memory_is(page, CANARY, offset) &&
	       memory_is(at + size, CANARY, sizeof(page) - offset - size),
	       "and writes exactly these");
	pks_keep_password(consumer, at, size);
}

static void check_in_use(unsigned int consumer, const char *how)
{
	memset(page, CANARY, 4096);
	report_code(pks_gen_password(consumer, page, 32), H_IN_USE,
		    "GEN_PASSWORD again, after %s for consumer %u", how, consumer);
	report(memory_is(page, CANARY, 4096), "gives nothing");
	report_code(pks_set_password(consumer, page, 32), H_IN_USE, "SET_PASSWORD again");
}

static void check_wrong(unsigned int consumer)
{
	static const uint64_t calls[] = { H_PKS_READ_OBJECT, H_PKS_REMOVE_OBJECT,
					  H_PKS_CONFIRM_OBJECT_FLUSHED };
	static uint8_t wrong[1024];
	struct pks_config config;
	const uint8_t *right;
	uint16_t size;
	uint32_t used;
	unsigned int n;

	pks_get_config(&config);
	right = pks_password(consumer, &size);
	memcpy(wrong, right, size);
	pks_label_set(&label, consumer, "password-check");
	call_as(H_PKS_REMOVE_OBJECT, consumer, right, size);
	used = pks_used_space();

	report_code(write_as(consumer, NULL, 0), H_AUTHORITY,
		    "consumer %u with a password: an empty one is refused", consumer);
	wrong[0] ^= 1;
	report_code(write_as(consumer, wrong, size), H_AUTHORITY, "one bit off, first byte");
	wrong[0] ^= 1;
	wrong[size - 1] ^= 0x80;
	report_code(write_as(consumer, wrong, size), H_AUTHORITY, "one bit off, last byte");
	wrong[size - 1] ^= 0x80;
	report_code(write_as(consumer, wrong, size - 1), H_AUTHORITY, "one byte short");
	if (size < config.maxpwsize) {
		wrong[size] = 0;
		report_code(write_as(consumer, wrong, size + 1), H_AUTHORITY, "one byte long");
	}
	report_equal(pks_used_space(), used, "nothing was written");

	report_code(write_as(consumer, wrong, size), H_SUCCESS, "the right one is accepted");
	memset(pks_out, CANARY, 4096);
	for (n = 0; n < sizeof(calls) / sizeof(calls[0]); n++)
		report_code(call_as(calls[n], consumer, NULL, 0), H_AUTHORITY, "%s without it",
			    hcall_name(calls[n]));
	report(memory_is(pks_out, CANARY, 4096), "READ told nothing");
	for (n = 1; n <= PKS_CONSUMERS; n++) {
		const uint8_t *other = pks_password(n, &size);

		if (n != consumer)
			report_code(call_as(H_PKS_READ_OBJECT, consumer, other, size),
				    H_AUTHORITY, "consumer %u's password does not fit", n);
	}
	report_code(pks_remove(consumer, &label), H_SUCCESS, "it is there to be removed");
	report_equal(pks_used_space(), used, "space is as before");
}

static void test_pks_password(void)
{
	static const uint8_t chosen[PKS_MIN_PASSWORD_SIZE] = "a password chosen by the guest";
	struct pks_config config;
	unsigned int consumer;
	int64_t code;

	if (!pks_announced())
		return;
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		if (pks_has_password(consumer)) {
			report_skip("passwords were set by an earlier test of this boot");
			return;
		}
	}
	code = pks_get_config(&config);
	if (!report_code(code, H_SUCCESS, "the keystore answers"))
		return;
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++)
		check_unset(consumer);

	check_wrap_unset();

	check_generate(PKS_CONSUMER_OS, config.maxpwsize, 48);
	check_wrap_set();
	check_in_use(PKS_CONSUMER_OS, "GEN_PASSWORD");
	check_unset(PKS_CONSUMER_BOOTLOADER);

	memcpy(page, chosen, sizeof(chosen));
	report_code(pks_set_password(PKS_CONSUMER_BOOTLOADER, page, sizeof(chosen)), H_SUCCESS,
		    "SET_PASSWORD for consumer %u", PKS_CONSUMER_BOOTLOADER);
	report(!memcmp(page, chosen, sizeof(chosen)), "leaves the buffer as it is");
	pks_keep_password(PKS_CONSUMER_BOOTLOADER, chosen, sizeof(chosen));
	check_in_use(PKS_CONSUMER_BOOTLOADER, "SET_PASSWORD");

	/* The shortest, ending where its page ends. */
	check_generate(PKS_CONSUMER_FIRMWARE, PKS_MIN_PASSWORD_SIZE,
		       4096 - PKS_MIN_PASSWORD_SIZE);
	check_in_use(PKS_CONSUMER_FIRMWARE, "GEN_PASSWORD");
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++)
		check_wrong(consumer);
}
STUB_TEST("pks_password", test_pks_password, "pks", true,
	  "GEN_PASSWORD, SET_PASSWORD, and who is let in");
