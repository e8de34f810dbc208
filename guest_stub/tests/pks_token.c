// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Operations that take several issues: busy answers with a continue token each, followed
 * to the end or not, and tokens that are none. Options:
 *	busy=N		pks.busy_answers of the partition (1 or more)
 *	busy-ms=N	its pks.busy_hint_ms
 */
#include "console.h"
#include "pks.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define CANARY		0x3d
#define SIZE		64
#define BLOB_SIZE	(SIZE + PKS_WRAP_OVERHEAD)
#define MAX_BUSY	64
#define MAX_TOKENS	256	/* that a partition keeps (docs/pks.md) */

static struct pks_label key;
static uint8_t blob[4096], data[4096], out[4096];
static uint64_t busy;
static int64_t busy_code;

/* A long operation: its arguments, of which one is the token. */
struct operation {
	const char *name;
	uint64_t number;
	uint64_t args[9];
	unsigned int count, token;
	int64_t bad_token;	/* the code */
	uint64_t result_size;
};

static struct operation wrap_operation(void)
{
	struct operation op = {
		.name = "WRAP", .number = H_PKS_WRAP_OBJECT, .count = 9, .token = 8,
		.args = { (uintptr_t)pks_auth(PKS_CONSUMER_OS), (uintptr_t)key.bytes, key.size,
			  PKS_WRAP_DEFAULT, (uintptr_t)data, SIZE, (uintptr_t)out, BLOB_SIZE, 0 },
		.bad_token = H_P9, .result_size = BLOB_SIZE,
	};

	return op;
}

static struct operation unwrap_operation(void)
{
	struct operation op = {
		.name = "UNWRAP", .number = H_PKS_UNWRAP_OBJECT, .count = 7, .token = 6,
		.args = { (uintptr_t)pks_auth(PKS_CONSUMER_OS), 0, (uintptr_t)blob, BLOB_SIZE,
			  (uintptr_t)out, SIZE, 0 },
		.bad_token = H_P7, .result_size = SIZE,
	};

	return op;
}

static int64_t issue(const struct operation *op, uint64_t token, struct hcall_regs *regs)
{
	uint64_t args[9];

	memcpy(args, op->args, sizeof(args));
	args[op->token] = token;
	memset(out, CANARY, sizeof(out));
	return hcall_args(regs, op->number, args, op->count);
}

/* An issue that is answered busy; gives the next token. */
static uint64_t issue_busy(const struct operation *op, uint64_t token)
{
	struct hcall_regs regs;
	int64_t code = issue(op, token, &regs);

	report_code(code, busy_code, "%s, %s token: busy", op->name, token ? "with its" : "no");
	report(regs.r[4] && regs.r[4] != token, "another token is given");
	report(memory_is(out, CANARY, sizeof(out)), "nothing is written");
	return regs.r[4];
}

static void issue_last(const struct operation *op, uint64_t token)
{
	struct hcall_regs regs;
	int64_t code = issue(op, token, &regs);

	report_code(code, H_SUCCESS, "%s, the last issue", op->name);
	report_equal(regs.r[4], 0, "no token is left");
	report_equal(regs.r[5], op->result_size, "the result's size");
	if (op->number == H_PKS_WRAP_OBJECT)
		memcpy(blob, out, BLOB_SIZE);
	else
		report(!memcmp(out, data, SIZE), "the data");
	report(memory_is(out + op->result_size, CANARY, sizeof(out) - op->result_size),
	       "and no more");
}

static void issue_bad(const struct operation *op, uint64_t token, const char *why)
{
	struct hcall_regs regs;
	int64_t code = issue(op, token, &regs);

	report_code(code, op->bad_token, "%s with a token: %s", op->name, why);
	report(!regs.r[4] && memory_is(out, CANARY, sizeof(out)), "gives nothing");
}

/* From the first issue to the last; each token is good once. */
static void check_whole(const struct operation *op)
{
	uint64_t tokens[MAX_BUSY], token = 0;
	unsigned int n, m;

	for (n = 0; n < busy; n++) {
		token = issue_busy(op, token);
		tokens[n] = token;
		for (m = 0; m < n; m++)
			report(tokens[m] != token, "no token is given twice");
		if (n)
			issue_bad(op, tokens[n - 1], "used up");
	}
	issue_last(op, token);
	for (n = 0; n < busy; n++)
		issue_bad(op, tokens[n], "of an operation that is done");
}

static void check_from(const struct operation *op, unsigned int done, uint64_t token)
{
	for (; done < busy; done++)
		token = issue_busy(op, token);
	issue_last(op, token);
}

/* A token is of one call with its arguments; whoever misuses it has not spoilt it. */
static void check_other(const struct operation *op, const struct operation *other)
{
	uint64_t token = issue_busy(op, 0);
	struct operation changed;
	unsigned int n;

	issue_bad(other, token, "of another call");
	for (n = 0; n < op->count; n++) {
		if (n == op->token || (op->number == H_PKS_UNWRAP_OBJECT && n == 1))
			continue;
		changed = *op;
		if (n == 0) {
			/* The same structure at another place. */
			memcpy(pks_out, (const void *)op->args[0], 128);
			changed.args[0] = (uintptr_t)pks_out;
		} else if (n == 1) {
			memcpy(pks_out + 4096, key.bytes, key.size);
			changed.args[1] = (uintptr_t)pks_out + 4096;
		} else if (op->number == H_PKS_WRAP_OBJECT && n == 2) {
			continue;	/* would be another key, with another code */
		} else if (op->number == H_PKS_WRAP_OBJECT && n == 3) {
			changed.args[3] |= PKS_WRAP_FLAG_OSSECBOOTAUDIT;
		} else if (op->number == H_PKS_WRAP_OBJECT && n == 5) {
			changed.args[5]--;
		} else if (op->number == H_PKS_UNWRAP_OBJECT && n == 3) {
			changed.args[3]--;
		} else {
			changed.args[n]++;	/* a buffer's address, or more room */
		}
		issue_bad(&changed, token, "though an argument is another");
	}
	issue_bad(op, token ^ 1, "one bit off");
	issue_bad(op, ~token, "never given");
	check_from(op, 1, token);
}

static bool prepare(void)
{
	static const int64_t codes[] = {
		H_BUSY, H_LONG_BUSY_ORDER_1_MSEC, H_LONG_BUSY_ORDER_10_MSEC,
		H_LONG_BUSY_ORDER_100_MSEC, H_LONG_BUSY_ORDER_1_SEC,
		H_LONG_BUSY_ORDER_10_SEC, H_LONG_BUSY_ORDER_100_SEC,
	};
	uint64_t ms = arg_number("busy-ms", 1);
	unsigned int n = 0;

	if (!pks_open())
		return false;
	busy = arg_number("busy", 0);
	if (!busy || busy > MAX_BUSY) {
		report_skip("busy=N says how many busy answers there are, 1 to %u", MAX_BUSY);
		return false;
	}
	for (; ms; ms /= 10)
		n++;
	busy_code = codes[n];
	memset(data, 0x42, SIZE);
	pks_label_set(&key, PKS_CONSUMER_OS, "token");
	pks_remove(PKS_CONSUMER_OS, &key);
	return report_code(pks_gen_key(PKS_CONSUMER_OS, &key, PKS_POLICY_WRAPPINGKEY, NULL,
				       PKS_WRAPPING_KEY_SIZE), H_SUCCESS,
			   "a wrapping key: GEN_KEY is never busy");
}

static void tear_down(void)
{
	report_code(pks_remove(PKS_CONSUMER_OS, &key), H_SUCCESS, "the key is removed");
}

static void test_pks_token(void)
{
	struct operation wrap, unwrap;
	uint64_t one, two;
	uint32_t used;

	if (!prepare())
		return;
	wrap = wrap_operation();
	unwrap = unwrap_operation();
	used = pks_used_space();
	check_whole(&wrap);
	check_whole(&unwrap);
	check_other(&wrap, &unwrap);
	check_other(&unwrap, &wrap);
	report_equal(pks_used_space(), used, "tokens take no space");

	/* Two at once, of the same arguments too. */
	one = issue_busy(&wrap, 0);
	two = issue_busy(&wrap, 0);
	report(one != two, "two operations have two tokens");
	check_from(&wrap, 1, two);
	check_from(&wrap, 1, one);
	one = issue_busy(&wrap, 0);
	two = issue_busy(&unwrap, 0);
	check_from(&unwrap, 1, two);
	check_from(&wrap, 1, one);
	tear_down();
}
STUB_TEST("pks_token", test_pks_token, "token", false,
	  "operations that take several issues, and their tokens");

/* What is refused in between, and what changes in between. */
static void test_pks_token_between(void)
{
	struct operation wrap, unwrap;
	struct hcall_regs regs;
	uint64_t token;
	unsigned int n;

	if (!prepare())
		return;
	wrap = wrap_operation();
	unwrap = unwrap_operation();
	check_from(&wrap, 0, 0);

	/* The buffers are read by the last issue. */
	token = issue_busy(&wrap, 0);
	for (n = 1; n < busy; n++)
		token = issue_busy(&wrap, token);
	memset(data, 0x43, SIZE);
	issue_last(&wrap, token);
	check_from(&unwrap, 0, 0);
	token = issue_busy(&unwrap, 0);
	for (n = 1; n < busy; n++)
		token = issue_busy(&unwrap, token);
	blob[BLOB_SIZE - 1] ^= 1;
	report_code(issue(&unwrap, token, &regs), H_BAD_DATA, "an object altered in between");
	report(!regs.r[4] && memory_is(out, CANARY, sizeof(out)), "gives nothing");
	blob[BLOB_SIZE - 1] ^= 1;

	/* Refused at once, not after busy answers. */
	wrap.args[2]--;
	report_code(issue(&wrap, 0, &regs), H_NOT_FOUND, "WRAP without a key");
	report_equal(regs.r[4], 0, "is not busy");
	wrap.args[2]++;
	pks_auth_fill(pks_out, PKS_CONSUMER_OS, NULL, 0);
	wrap.args[0] = (uintptr_t)pks_out;
	report_code(issue(&wrap, 0, &regs), H_AUTHORITY, "WRAP without the password");
	report_equal(regs.r[4], 0, "is not busy");

	/* The key is removed in between. */
	wrap = wrap_operation();
	token = issue_busy(&wrap, 0);
	report_code(pks_remove(PKS_CONSUMER_OS, &key), H_SUCCESS, "the key is removed");
	report_code(issue(&wrap, token, &regs), H_NOT_FOUND, "WRAP, its key gone");
	report_equal(regs.r[4], 0, "ends");
}
STUB_TEST("pks_token_between", test_pks_token_between, "token", false,
	  "what happens between two issues of an operation");

/* Operations that nobody ends: the oldest tokens become void, and that is all. */
static void test_pks_token_many(void)
{
	static uint64_t tokens[MAX_TOKENS + 50];
	const unsigned int count = sizeof(tokens) / sizeof(tokens[0]);
	struct operation wrap;
	struct hcall_regs regs;
	unsigned int n, bad = 0;

	if (!prepare())
		return;
	wrap = wrap_operation();
	for (n = 0; n < count; n++) {
		bad += issue(&wrap, 0, &regs) != busy_code;
		tokens[n] = regs.r[4];
	}
	report_equal(bad, 0, "%u operations are begun", count);
	bad = 0;
	for (n = 0; n < count - MAX_TOKENS; n++)
		bad += issue(&wrap, tokens[n], &regs) != wrap.bad_token;
	report_equal(bad, 0, "the oldest %u are forgotten", count - MAX_TOKENS);
	check_from(&wrap, 1, tokens[count - 1]);
	check_from(&wrap, 1, tokens[count - MAX_TOKENS / 2]);
	tear_down();
}
STUB_TEST("pks_token_many", test_pks_token_many, "token", false,
	  "operations that are never brought to an end");

static struct {
	struct operation op;
	uint64_t token;
	int64_t code;
} elsewhere;

static void issue_elsewhere(void *arg, unsigned int index)
{
	struct hcall_regs regs;

	(void)arg;
	if (index != 1)
		return;
	elsewhere.code = issue(&elsewhere.op, elsewhere.token, &regs);
	elsewhere.token = regs.r[4];
}

/* A thread that is moved to another CPU goes on there. */
static void test_pks_token_cpu(void)
{
	unsigned int n;

	if (!prepare())
		return;
	if (smp_count() < 2) {
		report_skip("there is one CPU only");
		return;
	}
	elsewhere.op = wrap_operation();
	elsewhere.token = issue_busy(&elsewhere.op, 0);
	for (n = 1; n <= busy; n++) {
		report(smp_run(2, issue_elsewhere, NULL), "another CPU ran");
		report_code(elsewhere.code, n < busy ? busy_code : H_SUCCESS,
			    "and went on with the operation");
	}
	tear_down();
}
STUB_TEST("pks_token_cpu", test_pks_token_cpu, "token", false,
	  "an operation that goes on another CPU");

/* The first boot leaves a token in an object; after a reset it is none. */
static void test_pks_token_reset(void)
{
	struct operation wrap;
	struct pks_label label;
	struct pks_result result;
	uint8_t kept[8];

	if (!pks_announced())
		return;
	pks_label_set(&label, PKS_CONSUMER_OS, "token-kept");
	if (!prepare())
		return;
	wrap = wrap_operation();
	result = pks_read(PKS_CONSUMER_OS, &label, kept, sizeof(kept));
	if (result.code == H_SUCCESS) {
		issue_bad(&wrap, load_be64(kept), "of the boot before");
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
		tear_down();
		return;
	}
	store_be64(kept, issue_busy(&wrap, 0));
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, kept, sizeof(kept)), H_SUCCESS,
		    "the token is kept");
	result = pks_confirm_wait(PKS_CONSUMER_OS, &label);
	if (report(result.code == H_SUCCESS && result.r4 == 1, "and flushed"))
		stub_reboot();
}
STUB_TEST("pks_token_reset", test_pks_token_reset, "token-reset", false,
	  "restarts the machine once: a token ends with it");
