// SPDX-License-Identifier: GPL-2.0-or-later
/* What a hostile guest passes to GEN_KEY, WRAP and UNWRAP; see pks_try.h. */
#include "pks.h"
#include "pks_try.h"
#include "string.h"
#include "test.h"

#define DATA_SIZE	64
#define BLOB_SIZE	(DATA_SIZE + PKS_WRAP_OVERHEAD)
#define KEY_SIZE	PKS_WRAPPING_KEY_SIZE

static struct pks_label key;
static uint64_t greatest;

static bool set_up(void)
{
	if (!try_set_up())
		return false;
	greatest = pks_greatest_object(&trial.config);
	pks_label_set(&key, PKS_CONSUMER_OS, "bad-key");
	pks_remove(PKS_CONSUMER_OS, &key);
	if (!report_code(pks_gen_key(PKS_CONSUMER_OS, &key, PKS_POLICY_WRAPPINGKEY, NULL, KEY_SIZE),
			 H_SUCCESS, "a wrapping key to work with"))
		return false;
	try_note_used();
	return true;
}

static void tear_down(void)
{
	report_code(pks_remove(PKS_CONSUMER_OS, &key), H_SUCCESS, "the key is still there");
	try_tear_down();
}

static struct call gen_key_call(void)
{
	struct call call = object_call("GEN_KEY", H_PKS_GEN_KEY, H_RESOURCE, &trial.present);

	call.args[3] = 0;
	call.args[4] = (uintptr_t)pks_out;
	call.args[5] = KEY_SIZE;
	call.count = 6;
	return call;
}

static void test_bad_gen_key(void)
{
	static const uint32_t others[] = {
		PKS_POLICY_SIGNEDUPDATE, PKS_POLICY_HVPROVISIONED,
		PKS_POLICY_WRAPPINGKEY | PKS_POLICY_WORLDREADABLE,
	};
	struct call call, two;
	unsigned int n;

	if (!set_up())
		return;
	call = gen_key_call();
	try_call(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	for (n = 0; n < 64; n++) {
		if (!(1ull << n & trial.config.supportedpolicies))
			try_bad(&call, 3, 1ull << n, "undefined policy");
	}
	try_bad(&call, 3, PKS_POLICY_WORLDREADABLE | HIGH_BIT, "policy bit 63 set");
	for (n = 0; n < sizeof(others) / sizeof(others[0]); n++)
		try_bad(&call, 3, others[n], "a policy that GEN_KEY does not give");
	try_bad_address(&call, 4, KEY_SIZE, 1);
	try_call(&call, 4, platform.ram_end - KEY_SIZE, call.passed, "out at the end of RAM");
	try_bad_size(&call, 5, 1, greatest);
	try_call(&call, 5, 1, call.passed, "the least");
	try_call(&call, 5, greatest, call.passed, "the greatest");

	two = call;
	two.args[3] = PKS_POLICY_WRAPPINGKEY;
	try_call(&two, -1, 0, call.passed, "a wrapping key");
	try_call(&two, 4, 0, call.passed, "out is 0, as Linux has it");
	try_call(&two, 4, platform.ram_end, call.passed, "out is not looked at");
	try_call(&two, 4, ~0ull, call.passed, "out is not looked at");
	try_bad_size(&two, 5, KEY_SIZE, KEY_SIZE);
	two = call;
	two.args[2] = 0;
	try_call(&two, 3, 1, H_P3, "the label's length comes before the policy");
	two = call;
	two.args[4] = platform.ram_end;
	try_call(&two, 3, 1, H_P4, "the policy comes before the buffer");
	try_call(&two, 5, 0, H_P5, "the buffer comes before its length");
	pks_auth_fill(trial.auth, PKS_CONSUMER_OS, NULL, 0);
	try_call(&two, -1, 0, H_P5, "arguments come before the password");
	try_call(&call, -1, 0, H_AUTHORITY, "the password comes before the label's object");
	try_set_auth(trial.auth);
	tear_down();
}
STUB_TEST("pks_bad_gen_key", test_bad_gen_key, "pks pks_bad", true,
	  "hostile arguments of GEN_KEY");

static struct call wrap_call(void)
{
	struct call call = object_call("WRAP", H_PKS_WRAP_OBJECT, H_SUCCESS, &key);

	call.args[3] = PKS_WRAP_DEFAULT;
	call.args[4] = (uintptr_t)pks_data;
	call.args[5] = DATA_SIZE;
	call.args[6] = (uintptr_t)pks_out;
	call.args[7] = BLOB_SIZE;
	call.args[8] = 0;
	call.count = 9;
	call.token = 8;
	return call;
}

static const uint64_t tokens[] = { 1, 0xffffffff, HIGH_WORD, HIGH_BIT, ~0ull };

static void test_bad_wrap(void)
{
	static const uint64_t rooms[] = { 0, 1, DATA_SIZE, PKS_WRAP_OVERHEAD, BLOB_SIZE - 1 };
	struct call call, two;
	unsigned int n;

	if (!set_up())
		return;
	call = wrap_call();
	try_call(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	try_call(&call, 2, trial.config.maxobjlabelsize, H_NOT_FOUND, "the longest label");
	for (n = 4; n < 60; n++)
		try_bad(&call, 3, PKS_WRAP_DEFAULT | 1ull << n, "unknown flag");
	try_bad(&call, 3, PKS_WRAP_DEFAULT | HIGH_BIT, "flag bit 63 set");
	try_bad(&call, 3, PKS_WRAP_FLAG_AES_GCM_256, "no password condition");
	try_bad(&call, 3, PKS_WRAP_FLAG_PASSWORD, "no algorithm");
	try_bad(&call, 3, PKS_WRAP_DEFAULT | PKS_WRAP_FLAG_OSSECBOOTAUDIT |
			  PKS_WRAP_FLAG_OSSECBOOTENFORCE, "both conditions");
	try_bad_address(&call, 4, DATA_SIZE, 1);
	try_call(&call, 4, platform.ram_end - DATA_SIZE, call.passed, "data at the end of RAM");
	try_bad_size(&call, 5, 1, greatest);
	try_call(&call, 5, 1, call.passed, "the least");
	try_call(&call, 5, DATA_SIZE + 1, H_P8, "one byte more than there is room for");
	try_call(&call, 5, greatest, H_P8, "the greatest, without the room");
	try_bad_address(&call, 6, BLOB_SIZE, 1);
	try_call(&call, 6, platform.ram_end - BLOB_SIZE, call.passed, "out at the end of RAM");
	try_bad_size(&call, 7, 0, HIGH_WORD - 1);
	for (n = 0; n < sizeof(rooms) / sizeof(rooms[0]); n++)
		try_bad(&call, 7, rooms[n], "too little room");
	try_call(&call, 7, BLOB_SIZE + 1, call.passed, "more than enough room");
	if (platform.ram_end < HIGH_WORD)
		try_call(&call, 7, HIGH_WORD - 1, H_P7, "more than RAM holds");
	for (n = 0; n < sizeof(tokens) / sizeof(tokens[0]); n++)
		try_bad(&call, 8, tokens[n], "a token that was never given");

	two = call;
	two.args[3] = 0;
	try_call(&two, 2, 0, H_P3, "the label's length comes before the flags");
	two = call;
	two.args[4] = platform.ram_end;
	try_call(&two, 3, HIGH_BIT, H_P4, "the flags come before the data");
	try_call(&two, 5, 0, H_P5, "the data come before their length");
	two.args[4] = call.args[4];
	two.args[6] = platform.ram_end;
	try_call(&two, 5, 0, H_P6, "the length comes before the result");
	try_call(&two, 7, HIGH_WORD, H_P7, "the result comes before its length");
	two = call;
	two.args[8] = 1;
	try_call(&two, 7, BLOB_SIZE - 1, H_P8, "the room comes before the token");
	pks_auth_fill(trial.auth, PKS_CONSUMER_OS, NULL, 0);
	try_call(&two, -1, 0, H_P9, "arguments come before the password");
	two = call;
	two.args[1] = (uintptr_t)trial.absent.bytes;
	two.args[2] = trial.absent.size;
	try_call(&two, -1, 0, H_AUTHORITY, "the password comes before the key");
	try_set_auth(trial.auth);
	try_call(&two, -1, 0, H_NOT_FOUND, "no key");
	two.args[1] = (uintptr_t)trial.present.bytes;
	two.args[2] = trial.present.size;
	try_call(&two, -1, 0, H_AUTHORITY, "an object that is no wrapping key");
	tear_down();
}
STUB_TEST("pks_bad_wrap", test_bad_wrap, "pks pks_bad", true, "hostile arguments of WRAP");

static struct call unwrap_call(void)
{
	struct call call = {
		.name = "UNWRAP", .number = H_PKS_UNWRAP_OBJECT, .passed = H_SUCCESS,
		.args = { (uintptr_t)trial.auth, 0, (uintptr_t)pks_data, BLOB_SIZE,
			  (uintptr_t)pks_out, DATA_SIZE, 0 },
		.count = 7, .token = 6,
	};

	return call;
}

static void test_bad_unwrap(void)
{
	static const uint64_t rooms[] = { 0, 1, DATA_SIZE - 1 };
	uint8_t *end = (uint8_t *)platform.ram_end - BLOB_SIZE;
	struct pks_result result;
	struct call call, two;
	unsigned int n;

	if (!set_up())
		return;
	result = pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT, pks_data, DATA_SIZE, pks_data,
			  BLOB_SIZE);
	if (!report_code(result.code, H_SUCCESS, "an object to unwrap"))
		return;
	call = unwrap_call();
	try_call(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	for (n = 0; n < 64; n++)
		try_bad(&call, 1, 1ull << n, "no flag is known");
	try_bad(&call, 1, PKS_WRAP_DEFAULT, "the flags of WRAP");
	try_bad_address(&call, 2, BLOB_SIZE, 1);
	memcpy(end, pks_data, BLOB_SIZE);
	try_call(&call, 2, (uintptr_t)end, call.passed, "wrapped object at the end of RAM");
	try_bad_size(&call, 3, PKS_WRAP_OVERHEAD, greatest + PKS_WRAP_OVERHEAD);
	try_bad(&call, 3, DATA_SIZE, "the size of the data");
	try_call(&call, 3, PKS_WRAP_OVERHEAD, H_BAD_DATA, "the least");
	try_call(&call, 3, BLOB_SIZE - 1, H_BAD_DATA, "one byte less");
	try_call(&call, 3, BLOB_SIZE + 1, H_P6, "one byte more than there is room for");
	try_call(&call, 3, greatest + PKS_WRAP_OVERHEAD, H_P6, "the greatest, without the room");
	try_bad_address(&call, 4, DATA_SIZE, 1);
	try_call(&call, 4, platform.ram_end - DATA_SIZE, call.passed, "out at the end of RAM");
	try_bad_size(&call, 5, 0, HIGH_WORD - 1);
	for (n = 0; n < sizeof(rooms) / sizeof(rooms[0]); n++)
		try_bad(&call, 5, rooms[n], "too little room");
	try_call(&call, 5, DATA_SIZE + 1, call.passed, "more than enough room");
	if (platform.ram_end < HIGH_WORD)
		try_call(&call, 5, HIGH_WORD - 1, H_P5, "more than RAM holds");
	for (n = 0; n < sizeof(tokens) / sizeof(tokens[0]); n++)
		try_bad(&call, 6, tokens[n], "a token that was never given");

	two = call;
	two.args[1] = 1;
	try_call(&two, 0, platform.ram_end, H_PARAMETER, "authorization comes before the flags");
	try_call(&two, 2, platform.ram_end, H_P2, "the flags come before the object");
	two = call;
	two.args[2] = platform.ram_end;
	try_call(&two, 3, 0, H_P3, "the object comes before its length");
	two = call;
	two.args[3] = PKS_WRAP_OVERHEAD - 1;
	try_call(&two, 4, platform.ram_end, H_P4, "the length comes before the result");
	two = call;
	two.args[4] = platform.ram_end;
	try_call(&two, 5, HIGH_WORD, H_P5, "the result comes before its length");
	two = call;
	two.args[5] = DATA_SIZE - 1;
	try_call(&two, 6, 1, H_P6, "the room comes before the token");
	two = call;
	two.args[6] = 1;
	pks_auth_fill(trial.auth, PKS_CONSUMER_OS, NULL, 0);
	try_call(&two, -1, 0, H_P7, "arguments come before the password");
	pks_data[BLOB_SIZE - 1] ^= 1;
	try_call(&call, -1, 0, H_AUTHORITY, "the password comes before what the object is");
	try_set_auth(trial.auth);
	try_call(&call, -1, 0, H_BAD_DATA, "an altered object");
	tear_down();
}
STUB_TEST("pks_bad_unwrap", test_bad_unwrap, "pks pks_bad", true, "hostile arguments of UNWRAP");
