// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a hostile guest passes: for each argument of each call every bound below, at and
 * above, upper halves set, and buffers where no RAM is (pks_try.h says how).
 */
#include "console.h"
#include "mmu.h"
#include "pks.h"
#include "pks_try.h"
#include "string.h"
#include "test.h"

static struct call write_call(void)
{
	struct call call = object_call("WRITE", H_PKS_WRITE_OBJECT, H_RESOURCE, &trial.present);

	call.args[3] = 0;
	call.args[4] = (uintptr_t)pks_data;
	call.args[5] = 64;
	call.count = 6;
	return call;
}

static struct call read_call(void)
{
	struct call call = object_call("READ", H_PKS_READ_OBJECT, H_SUCCESS, &trial.present);

	call.args[3] = (uintptr_t)pks_out;
	call.args[4] = TRY_OUT_SIZE;
	call.count = 5;
	return call;
}

static struct call password_call(const char *name, uint64_t number)
{
	struct call call = {
		.name = name, .number = number, .passed = H_IN_USE, .count = 4,
		.args = { PKS_CONSUMER_OS, 0, (uintptr_t)trial.page, PKS_MIN_PASSWORD_SIZE },
	};

	return call;
}

static struct call config_call(void)
{
	struct call call = {
		.name = "GET_CONFIG", .number = H_PKS_GET_CONFIG, .passed = H_SUCCESS,
		.args = { (uintptr_t)pks_out, PKS_CONFIG_SIZE_6_12 }, .count = 2,
	};

	return call;
}

static void test_bad_config(void)
{
	struct call call = config_call();
	uint8_t *end = (uint8_t *)platform.ram_end - PKS_CONFIG_SIZE_6_12;

	if (!try_set_up())
		return;
	try_call(&call, -1, 0, call.passed, "good arguments");
	try_bad_address(&call, 0, PKS_CONFIG_SIZE_6_12, 1);
	try_call(&call, 0, (uintptr_t)end, H_SUCCESS, "the last bytes of RAM");
	try_bad_size(&call, 1, PKS_CONFIG_MIN_SIZE, PKS_CONFIG_MAX_SIZE);
	try_call(&call, 1, PKS_CONFIG_MIN_SIZE, H_SUCCESS, "the least");
	/* The end of RAM holds nothing of ours that its zeros could hit. */
	call.args[0] = platform.ram_end - PKS_CONFIG_MAX_SIZE;
	try_call(&call, 1, PKS_CONFIG_MAX_SIZE, H_SUCCESS, "the greatest");
	call.args[0]++;
	try_call(&call, 1, PKS_CONFIG_MAX_SIZE, H_PARAMETER, "one byte more than RAM holds");
	call.args[0] = platform.ram_end;
	try_call(&call, 1, 0, H_PARAMETER, "with a bad buffer, which comes first");
	try_tear_down();
}
STUB_TEST("pks_bad_config", test_bad_config, "pks pks_bad", true,
	  "hostile arguments of GET_CONFIG");

static void try_password_call(const struct call *call)
{
	static const uint64_t consumers[] = { 0, 4, 255, PKS_CONSUMER_OS | HIGH_WORD,
					      PKS_CONSUMER_OS | HIGH_BIT, ~0ull };
	static const uint64_t reserved[] = { 1, HIGH_WORD, HIGH_BIT, ~0ull };
	struct call two = *call;
	unsigned int n;

	try_call(call, -1, 0, call->passed, "good arguments");
	for (n = 0; n < sizeof(consumers) / sizeof(consumers[0]); n++)
		try_bad(call, 0, consumers[n], "no consumer");
	for (n = 1; n <= PKS_CONSUMERS; n++)
		try_call(call, 0, n, call->passed, "a consumer");
	for (n = 0; n < sizeof(reserved) / sizeof(reserved[0]); n++)
		try_bad(call, 1, reserved[n], "reserved");
	try_bad_address(call, 2, PKS_MIN_PASSWORD_SIZE, 1);
	try_call(call, 2, (uintptr_t)(trial.page + PAGE_SIZE - PKS_MIN_PASSWORD_SIZE), call->passed,
		 "up to the page's end");
	try_bad(call, 2, (uintptr_t)(trial.page + PAGE_SIZE - PKS_MIN_PASSWORD_SIZE + 1),
		"over the page's end, by one byte");
	try_bad(call, 2, (uintptr_t)(trial.page + PAGE_SIZE - 1),
		"over the page's end, by all but one byte");
	try_bad_size(call, 3, PKS_MIN_PASSWORD_SIZE, trial.config.maxpwsize);
	try_call(call, 3, trial.config.maxpwsize, call->passed, "the greatest");

	two.args[0] = 0;
	try_call(&two, 1, 1, H_PARAMETER, "a bad consumer comes first");
	two = *call;
	two.args[1] = 1;
	try_call(&two, 2, platform.ram_end, H_P2, "reserved comes before the buffer");
	two = *call;
	two.args[2] = platform.ram_end;
	try_call(&two, 3, 0, H_P3, "the buffer comes before the length");
}

static void test_bad_password(void)
{
	struct call generate = password_call("GEN_PASSWORD", H_PKS_GEN_PASSWORD);
	struct call set = password_call("SET_PASSWORD", H_PKS_SET_PASSWORD);

	if (!try_set_up())
		return;
	try_password_call(&generate);
	try_password_call(&set);
	try_tear_down();
}
STUB_TEST("pks_bad_password", test_bad_password, "pks pks_bad", true,
	  "hostile arguments of GEN_PASSWORD and SET_PASSWORD");

static void test_bad_write(void)
{
	struct call call, two;
	uint32_t greatest;

	if (!try_set_up())
		return;
	greatest = pks_greatest_object(&trial.config);
	call = write_call();
	try_call(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	try_bad(&call, 3, 1, "undefined policy");
	try_bad(&call, 3, HIGH_WORD, "policy bit 32 set");
	try_bad(&call, 3, PKS_POLICY_WORLDREADABLE | HIGH_BIT, "policy bit 63 set");
	try_bad_address(&call, 4, call.args[5], 1);
	try_call(&call, 4, platform.ram_end - call.args[5], call.passed, "data at the end of RAM");
	try_call(&call, 4, (uintptr_t)(pks_data + PAGE_SIZE - 1), call.passed,
		 "data over a page's end");
	try_bad_size(&call, 5, 1, greatest);
	try_call(&call, 5, 1, call.passed, "the least");
	try_call(&call, 5, trial.config.maxobjsize, call.passed, "the greatest");

	two = call;
	two.args[1] = platform.ram_end;
	try_call(&two, 0, platform.ram_end, H_PARAMETER, "authorization comes before label");
	two.args[2] = 0;
	try_call(&two, 3, 1, H_P2, "label comes before its length");
	two = call;
	two.args[3] = 1;
	try_call(&two, 2, 0, H_P3, "the label's length comes before the policy");
	try_call(&two, 4, platform.ram_end, H_P4, "the policy comes before the data");
	two = call;
	two.args[5] = 0;
	try_call(&two, 4, platform.ram_end, H_P5, "the data come before their length");
	pks_auth_fill(trial.auth, PKS_CONSUMER_OS, NULL, 0);
	try_call(&two, -1, 0, H_P6, "arguments come before the password");
	try_call(&call, -1, 0, H_AUTHORITY, "the password comes before the label's object");
	try_set_auth(trial.auth);
	try_tear_down();
}
STUB_TEST("pks_bad_write", test_bad_write, "pks pks_bad", true, "hostile arguments of WRITE");

static void test_bad_read(void)
{
	struct call call, two;

	if (!try_set_up())
		return;
	call = read_call();
	try_call(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	try_bad_address(&call, 3, TRY_OUT_SIZE, 1);
	try_call(&call, 3, platform.ram_end - TRY_OUT_SIZE, call.passed,
		 "a buffer at the end of RAM");
	try_call(&call, 3, (uintptr_t)(pks_out + 1), call.passed, "a buffer at an odd address");
	try_bad_size(&call, 4, 0, HIGH_WORD - 1);
	if (platform.ram_end < HIGH_WORD)
		try_call(&call, 4, HIGH_WORD - 1, H_P4, "more than RAM holds");
	try_call(&call, 4, 0, H_TOO_BIG, "no room at all");
	try_call(&call, 4, 63, H_TOO_BIG, "one byte too little");
	try_call(&call, 4, 64, call.passed, "just enough");
	try_call(&call, 2, trial.config.maxobjlabelsize, H_NOT_FOUND, "the longest label");

	two = call;
	two.args[4] = HIGH_WORD;
	try_call(&two, 3, platform.ram_end, H_P4, "the buffer comes before its length");
	two = call;
	two.args[3] = platform.ram_end;
	pks_auth_fill(trial.auth, PKS_CONSUMER_OS, NULL, 0);
	try_call(&two, -1, 0, H_P4, "arguments come before the password");
	two = call;
	two.args[1] = (uintptr_t)trial.absent.bytes;
	two.args[2] = trial.absent.size;
	try_call(&two, -1, 0, H_AUTHORITY, "the password comes before the object");
	try_call(&call, 4, 0, H_AUTHORITY, "the password comes before the room");
	try_set_auth(trial.auth);
	try_call(&two, 4, 0, H_NOT_FOUND, "the object comes before the room");
	try_tear_down();
}
STUB_TEST("pks_bad_read", test_bad_read, "pks pks_bad", true, "hostile arguments of READ");

static void try_label_call(struct call call, int64_t when_absent)
{
	struct call two = call;

	try_call(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	try_call(&call, 2, trial.config.maxobjlabelsize, when_absent, "the longest label");
	two.args[2] = 0;
	try_call(&two, 1, platform.ram_end, H_P2, "label comes before its length");
	pks_auth_fill(trial.auth, PKS_CONSUMER_OS, NULL, 0);
	try_call(&two, -1, 0, H_P3, "arguments come before the password");
	try_call(&call, -1, 0, H_AUTHORITY, "the password comes before the object");
	try_set_auth(trial.auth);
}

static void test_bad_remove(void)
{
	if (!try_set_up())
		return;
	try_label_call(object_call("REMOVE", H_PKS_REMOVE_OBJECT, H_NOT_FOUND, &trial.absent),
		       H_NOT_FOUND);
	try_tear_down();
}
STUB_TEST("pks_bad_remove", test_bad_remove, "pks pks_bad", true,
	  "hostile arguments of REMOVE");

static void test_bad_confirm(void)
{
	if (!try_set_up())
		return;
	try_label_call(object_call("CONFIRM", H_PKS_CONFIRM_OBJECT_FLUSHED, H_SUCCESS,
				   &trial.present), H_NOT_FOUND);
	try_tear_down();
}
STUB_TEST("pks_bad_confirm", test_bad_confirm, "pks pks_bad", true,
	  "hostile arguments of CONFIRM");

/* Names of consumers 1 and 2 may lie anywhere: Linux passes a string of its rodata. */
static void test_firmware_label(void)
{
	uint8_t *at = trial.page + PAGE_SIZE - 3;
	struct hcall_regs regs;

	if (!try_set_up())
		return;
	memcpy(at, "SB_VERSIOX", 10);
	report_code(HCALL(&regs, H_PKS_READ_OBJECT, (uintptr_t)pks_auth(PKS_CONSUMER_FIRMWARE),
			  (uintptr_t)at, 10, (uintptr_t)pks_out, TRY_OUT_SIZE),
		    H_NOT_FOUND, "a firmware label over a page's end");
	try_tear_down();
}
STUB_TEST("pks_firmware_label", test_firmware_label, "pks pks_bad", true,
	  "labels of firmware lie anywhere");

static void try_from_user(const struct call *call)
{
	struct hcall_regs regs;
	unsigned int n, changed = 0;

	memset(pks_out, TRY_CANARY, TRY_WATCHED_SIZE);
	memset(trial.page, TRY_CANARY, sizeof(trial.page));
	hcall_fill(&regs, call->number, call->args, call->count);
	hcall_raw_user(&regs);
	report_code((int64_t)regs.r[3], H_PRIVILEGE, "%s from problem state", call->name);
	for (n = 4; n <= 12; n++)
		changed += regs.r[n] != (n - 4 < call->count ? call->args[n - 4] :
							       HCALL_POISON(n));
	report_equal(changed, 0, "changes no other register");
	report(memory_is(pks_out, TRY_CANARY, TRY_WATCHED_SIZE) &&
	       memory_is(trial.page, TRY_CANARY, sizeof(trial.page)) &&
	       pks_used_space() == trial.used,
	       "and no memory and no object");
}

/* Arguments with which each call would do something, were it let. */
static void test_pks_user(void)
{
	struct call calls[11];
	unsigned int n;

	if (!try_set_up())
		return;
	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	calls[0] = config_call();
	calls[1] = password_call("GEN_PASSWORD", H_PKS_GEN_PASSWORD);
	calls[2] = password_call("SET_PASSWORD", H_PKS_SET_PASSWORD);
	calls[3] = write_call();
	calls[3].args[1] = (uintptr_t)trial.absent.bytes;
	calls[3].args[2] = trial.absent.size;
	calls[4] = read_call();
	calls[5] = object_call("REMOVE", H_PKS_REMOVE_OBJECT, H_SUCCESS, &trial.present);
	calls[6] = object_call("CONFIRM", H_PKS_CONFIRM_OBJECT_FLUSHED, H_SUCCESS, &trial.present);
	calls[7] = object_call("GEN_KEY", H_PKS_GEN_KEY, H_SUCCESS, &trial.absent);
	calls[7].args[3] = 0;
	calls[7].args[4] = (uintptr_t)pks_out;
	calls[7].args[5] = 32;
	calls[7].count = 6;
	calls[8] = object_call("WRAP", H_PKS_WRAP_OBJECT, H_SUCCESS, &trial.present);
	memcpy(&calls[8].args[3], (const uint64_t[]){ PKS_WRAP_DEFAULT, (uintptr_t)pks_data, 64,
						      (uintptr_t)pks_out, 2048, 0 }, 48);
	calls[8].count = 9;
	calls[9] = (struct call){
		.name = "UNWRAP", .number = H_PKS_UNWRAP_OBJECT, .count = 7,
		.args = { (uintptr_t)trial.auth, 0, (uintptr_t)pks_data, 2048,
			  (uintptr_t)pks_out, 2048, 0 },
	};
	calls[10] = object_call("SIGNED_UPDATE", H_PKS_SIGNED_UPDATE, H_SUCCESS, &trial.absent);
	memcpy(&calls[10].args[3], (const uint64_t[]){ PKS_POLICY_SIGNEDUPDATE, 0,
						       (uintptr_t)pks_data, 64, 0 }, 40);
	calls[10].count = 8;
	for (n = 0; n < sizeof(calls) / sizeof(calls[0]); n++)
		try_from_user(&calls[n]);
	try_tear_down();
}
STUB_TEST("pks_user", test_pks_user, "pks pks_bad", true, "problem state gets H_PRIVILEGE");

/* Numbers beside the calls: gaps of Linux's list, no multiple of 4, an upper half. */
static void test_pks_number(void)
{
	static const uint64_t numbers[] = {
		0x428, 0x440, 0x444, H_PKS_GET_CONFIG + 1, H_PKS_GET_CONFIG + 2,
		H_PKS_GET_CONFIG | HIGH_WORD, H_PKS_GET_CONFIG | HIGH_BIT,
	};
	struct hcall_regs regs;
	unsigned int n;

	if (!try_set_up())
		return;
	memset(pks_out, TRY_CANARY, TRY_WATCHED_SIZE);
	for (n = 0; n < sizeof(numbers) / sizeof(numbers[0]); n++)
		report_code(HCALL(&regs, numbers[n], (uintptr_t)pks_out, PKS_CONFIG_SIZE_6_12),
			    H_FUNCTION, "0x%lx is no call", numbers[n]);
	report(memory_is(pks_out, TRY_CANARY, TRY_WATCHED_SIZE), "nothing was written");
	try_tear_down();
}
STUB_TEST("pks_number", test_pks_number, "pks pks_bad", true, "numbers that are no call");
