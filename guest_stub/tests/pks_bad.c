// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a hostile guest passes: for each argument of each call every bound below, at and
 * above, upper halves set, and buffers where no RAM is. The code must be the argument's
 * own, nothing may be written, and the keystore must stay as it is.
 *
 * Each call has a set of good arguments with which it changes nothing (WRITE names an
 * object that exists, REMOVE one that does not, the passwords are set), and so a code
 * that says that the arguments passed. One argument at a time is then replaced.
 */
#include "console.h"
#include "mmu.h"
#include "pks.h"
#include "string.h"
#include "test.h"

#define CANARY		0x5a
#define WATCHED_SIZE	8192	/* of each buffer that a call might write to */
#define OUT_SIZE	4096
#define HIGH_WORD	(1ull << 32)
#define HIGH_BIT	(1ull << 63)

static struct pks_config config;
static struct pks_label present, absent;
static uint8_t auth[2 * 4096] __attribute__((aligned(4096)));
static uint8_t page[2 * 4096] __attribute__((aligned(4096)));
static uint32_t used;

struct call {
	const char *name;
	uint64_t number;
	uint64_t args[9];
	unsigned int count;
	int64_t passed;		/* the code when all arguments are good */
};

/* H_PARAMETER, H_P2, ...: "argument n is bad", n from 0. */
static int64_t bad_arg_code(unsigned int n)
{
	static const int64_t codes[] = { H_PARAMETER, H_P2, H_P3, H_P4, H_P5,
					 H_P6, H_P7, H_P8, H_P9 };

	return codes[n];
}

/* Runs the call, with one argument replaced if n is not negative. */
static void try(const struct call *call, int n, uint64_t value, int64_t expected,
		const char *what)
{
	uint64_t args[9];
	struct hcall_regs regs;
	int64_t code;
	bool silent;

	memcpy(args, call->args, sizeof(args));
	if (n >= 0)
		args[n] = value;
	memset(pks_out, CANARY, WATCHED_SIZE);
	memset(page, CANARY, sizeof(page));
	hcall_fill(&regs, call->number, args, call->count);
	hcall_raw(&regs);
	code = (int64_t)regs.r[3];
	silent = memory_is(pks_out, CANARY, WATCHED_SIZE) &&
		 memory_is(page, CANARY, sizeof(page));

	if (n >= 0)
		report_code(code, expected, "%s r%d=0x%lx: %s", call->name, n + 4, value, what);
	else
		report_code(code, expected, "%s: %s", call->name, what);
	if (code != H_SUCCESS && !silent)
		report(false, "%s failed but wrote to memory", call->name);
	if (pks_used_space() != used) {
		report(false, "%s changed the space in use", call->name);
		used = pks_used_space();
	}
}

static void try_bad(const struct call *call, unsigned int n, uint64_t value, const char *what)
{
	try(call, (int)n, value, bad_arg_code(n), what);
}

/* Addresses at which these many bytes are not all RAM; step keeps an alignment. */
static void try_bad_address(const struct call *call, unsigned int n, uint64_t size,
			    uint64_t step)
{
	uint64_t good = call->args[n], end = platform.ram_end;

	try_bad(call, n, end, "just past RAM");
	try_bad(call, n, end + PAGE_SIZE, "past RAM");
	if (size > step)
		try_bad(call, n, end - size + step, "across the end of RAM");
	try_bad(call, n, platform.mmio_base, "in MMIO");
	try_bad(call, n, platform.mmio_base + (1ull << 30), "in MMIO, higher");
	if (end <= HIGH_WORD)
		try_bad(call, n, good | HIGH_WORD, "bit 32 set");
	try_bad(call, n, good | 1ull << 59, "bit 59 set");
	try_bad(call, n, -(uint64_t)PAGE_SIZE, "the last page below 2^64");
	if (size > step)
		try_bad(call, n, -size + step, "wrapping 2^64");
	try_bad(call, n, -step, "the last byte or unit below 2^64");
	/* Of a real address the top four bits do not count (ISA 3.1 book III 6.7.3). */
	try(call, (int)n, good | HIGH_BIT, call->passed, "bit 63 set: does not count");
	try(call, (int)n, good | 0xc000000000000000ull, call->passed,
	    "a kernel's linear address: its top bits do not count");
	try(call, (int)n, good | 1ull << 60, call->passed, "bit 60 set: does not count");
}

/* Numbers that are no size up to max: max itself and min are the caller's. */
static void try_bad_size(const struct call *call, unsigned int n, uint64_t min, uint64_t max)
{
	uint64_t good = call->args[n];

	if (min > 0) {
		try_bad(call, n, 0, "zero");
		try_bad(call, n, min - 1, "below the least");
	}
	if (max < HIGH_WORD - 1) {
		try_bad(call, n, max + 1, "above the greatest");
		try_bad(call, n, HIGH_WORD - 1, "2^32 - 1");
	}
	try_bad(call, n, HIGH_WORD, "2^32");
	try_bad(call, n, good | HIGH_WORD, "bit 32 set");
	try_bad(call, n, good | HIGH_BIT, "bit 63 set");
	try_bad(call, n, ~0ull, "2^64 - 1");
}

static void set_auth(void *at)
{
	uint16_t size;
	const uint8_t *password = pks_password(PKS_CONSUMER_OS, &size);

	pks_auth_fill(at, PKS_CONSUMER_OS, password, size);
}

/* Contents of the authorization structure, and where it lies. */
static void try_bad_auth(const struct call *call)
{
	static const uint8_t versions[] = { 0, 2, 255 }, consumers[] = { 0, 4, 255 };
	static const unsigned int misaligned[] = { 1, 2, 4, 8, 15 };
	uint8_t *last = (uint8_t *)(platform.ram_end - PKS_AUTH_HEADER_SIZE);
	uint64_t size = PKS_AUTH_HEADER_SIZE + config.maxpwsize;
	unsigned int n;
	char what[48];

	try_bad_address(call, 0, size, PKS_AUTH_ALIGNMENT);
	for (n = 0; n < sizeof(versions); n++) {
		set_auth(auth);
		auth[PKS_AUTH_VERSION] = versions[n];
		format_text(what, sizeof(what), "authorization version %u", versions[n]);
		try_bad(call, 0, (uintptr_t)auth, what);
	}
	for (n = 0; n < sizeof(consumers); n++) {
		set_auth(auth);
		auth[PKS_AUTH_CONSUMER] = consumers[n];
		format_text(what, sizeof(what), "consumer %u", consumers[n]);
		try_bad(call, 0, (uintptr_t)auth, what);
	}
	for (n = 0; n < PKS_AUTH_RESERVED_SIZE; n++) {
		set_auth(auth);
		auth[PKS_AUTH_RESERVED + n] = n & 1 ? 0x80 : 1;
		format_text(what, sizeof(what), "reserved byte %u", PKS_AUTH_RESERVED + n);
		try_bad(call, 0, (uintptr_t)auth, what);
	}
	set_auth(auth);
	store_be16(auth + PKS_AUTH_PASSWORD_SIZE, config.maxpwsize + 1);
	try_bad(call, 0, (uintptr_t)auth, "password length above maxpwsize");
	store_be16(auth + PKS_AUTH_PASSWORD_SIZE, 0xffff);
	try_bad(call, 0, (uintptr_t)auth, "password length 65535");
	for (n = 0; n < sizeof(misaligned) / sizeof(misaligned[0]); n++) {
		set_auth(auth + misaligned[n]);
		format_text(what, sizeof(what), "misaligned by %u", misaligned[n]);
		try_bad(call, 0, (uintptr_t)(auth + misaligned[n]), what);
	}

	set_auth(auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE);
	try_bad(call, 0, (uintptr_t)(auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE),
		"password beyond the page");
	pks_auth_fill(auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE, PKS_CONSUMER_OS, NULL, 0);
	try(call, 0, (uintptr_t)(auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE), H_AUTHORITY,
	    "no password, at the page's end: well-formed, and wrong");
	if (size % PKS_AUTH_ALIGNMENT == 0) {
		set_auth(auth + PAGE_SIZE - size);
		try(call, 0, (uintptr_t)(auth + PAGE_SIZE - size), call->passed,
		    "password up to the page's end");
		set_auth(auth + PAGE_SIZE - size + PKS_AUTH_ALIGNMENT);
		try_bad(call, 0, (uintptr_t)(auth + PAGE_SIZE - size + PKS_AUTH_ALIGNMENT),
			"password over the page's end");
	}
	pks_auth_fill(last, PKS_CONSUMER_OS, NULL, 0);
	try(call, 0, (uintptr_t)last, H_AUTHORITY, "no password, at the end of RAM");
	store_be16(last + PKS_AUTH_PASSWORD_SIZE, PKS_MIN_PASSWORD_SIZE);
	try_bad(call, 0, (uintptr_t)last, "password past the end of RAM");
	set_auth(auth);
}

/* The operating system's labels begin with attributes (plpks.c struct label_attr). */
static void try_bad_header(const struct call *call)
{
	static const struct {
		unsigned int offset;
		uint8_t value;
		const char *what;
	} headers[] = {
		{ 8, 1, "label version 1" },
		{ 10, 0, "label attribute length 0" },
		{ 10, 15, "label attribute length 15" },
		{ 10, 17, "label attribute length 17" },
		{ 11, 1, "reserved byte of the label's header, first" },
		{ 15, 1, "reserved byte of the label's header, last" },
	};
	uint8_t *at = auth + PAGE_SIZE;
	unsigned int n;

	for (n = 0; n < sizeof(headers) / sizeof(headers[0]); n++) {
		memcpy(at, (const uint8_t *)call->args[1], call->args[2]);
		at[headers[n].offset] = headers[n].value;
		try_bad(call, 1, (uintptr_t)at, headers[n].what);
	}
}

/* The label argument is number 1, its size number 2. */
static void try_bad_label(const struct call *call)
{
	const uint8_t *label = (const uint8_t *)call->args[1];
	uint64_t size = call->args[2];
	uint8_t *at;

	try_bad_address(call, 1, size, 1);
	at = (uint8_t *)platform.ram_end - size;
	memcpy(at, label, size);
	try(call, 1, (uintptr_t)at, call->passed, "label at the end of RAM");
	at = auth + 2 * PAGE_SIZE - size;
	memcpy(at, label, size);
	try(call, 1, (uintptr_t)at, call->passed, "label at a page's end");
	at = auth + PAGE_SIZE;
	memcpy(at + 1, label, size);
	try(call, 1, (uintptr_t)(at + 1), call->passed, "label at an odd address");
	/* Of the operating system's labels Linux says that they do not cross a page. */
	at = auth + PAGE_SIZE - 1;
	memcpy(at, label, size);
	try_bad(call, 1, (uintptr_t)at, "label over a page's end, by all but one byte");
	at = auth + PAGE_SIZE - size + 1;
	memcpy(at, label, size);
	try_bad(call, 1, (uintptr_t)at, "label over a page's end, by one byte");
	set_auth(auth);

	try_bad_size(call, 2, 1, config.maxobjlabelsize);
	try_bad(call, 2, PKS_LABEL_HEADER_SIZE - 1, "not all of the label's header");
	try_bad_header(call);
}

static struct call object_call(const char *name, uint64_t number, int64_t passed,
			       const struct pks_label *label)
{
	struct call call = {
		.name = name, .number = number, .passed = passed, .count = 3,
		.args = { (uintptr_t)auth, (uintptr_t)label->bytes, label->size },
	};

	return call;
}

static struct call write_call(void)
{
	struct call call = object_call("WRITE", H_PKS_WRITE_OBJECT, H_RESOURCE, &present);

	call.args[3] = 0;
	call.args[4] = (uintptr_t)pks_data;
	call.args[5] = 64;
	call.count = 6;
	return call;
}

static struct call read_call(void)
{
	struct call call = object_call("READ", H_PKS_READ_OBJECT, H_SUCCESS, &present);

	call.args[3] = (uintptr_t)pks_out;
	call.args[4] = OUT_SIZE;
	call.count = 5;
	return call;
}

static struct call password_call(const char *name, uint64_t number)
{
	struct call call = {
		.name = name, .number = number, .passed = H_IN_USE, .count = 4,
		.args = { PKS_CONSUMER_OS, 0, (uintptr_t)page, PKS_MIN_PASSWORD_SIZE },
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

/* Passwords of all consumers, one object that is there and one that is not. */
static bool set_up(void)
{
	if (!pks_open())
		return false;
	pks_get_config(&config);
	set_auth(auth);
	pks_label_set(&present, PKS_CONSUMER_OS, "bad-present");
	pks_label_set(&absent, PKS_CONSUMER_OS, "bad-absent");
	pks_remove(PKS_CONSUMER_OS, &present);
	pks_remove(PKS_CONSUMER_OS, &absent);
	memset(pks_data, 0x11, 64);
	if (!report_code(pks_write(PKS_CONSUMER_OS, &present, 0, pks_data, 64), H_SUCCESS,
			 "an object to work with"))
		return false;
	used = pks_used_space();
	return true;
}

static void tear_down(void)
{
	report_code(pks_remove(PKS_CONSUMER_OS, &present), H_SUCCESS,
		    "the object is still there");
}

static void test_bad_config(void)
{
	struct call call = config_call();
	uint8_t *end = (uint8_t *)platform.ram_end - PKS_CONFIG_SIZE_6_12;

	if (!set_up())
		return;
	try(&call, -1, 0, call.passed, "good arguments");
	try_bad_address(&call, 0, PKS_CONFIG_SIZE_6_12, 1);
	try(&call, 0, (uintptr_t)end, H_SUCCESS, "the last bytes of RAM");
	try_bad_size(&call, 1, PKS_CONFIG_MIN_SIZE, PKS_CONFIG_MAX_SIZE);
	try(&call, 1, PKS_CONFIG_MIN_SIZE, H_SUCCESS, "the least");
	/* The end of RAM holds nothing of ours that its zeros could hit. */
	call.args[0] = platform.ram_end - PKS_CONFIG_MAX_SIZE;
	try(&call, 1, PKS_CONFIG_MAX_SIZE, H_SUCCESS, "the greatest");
	call.args[0]++;
	try(&call, 1, PKS_CONFIG_MAX_SIZE, H_PARAMETER, "one byte more than RAM holds");
	call.args[0] = platform.ram_end;
	try(&call, 1, 0, H_PARAMETER, "with a bad buffer, which comes first");
	tear_down();
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

	try(call, -1, 0, call->passed, "good arguments");
	for (n = 0; n < sizeof(consumers) / sizeof(consumers[0]); n++)
		try_bad(call, 0, consumers[n], "no consumer");
	for (n = 1; n <= PKS_CONSUMERS; n++)
		try(call, 0, n, call->passed, "a consumer");
	for (n = 0; n < sizeof(reserved) / sizeof(reserved[0]); n++)
		try_bad(call, 1, reserved[n], "reserved");
	try_bad_address(call, 2, PKS_MIN_PASSWORD_SIZE, 1);
	try(call, 2, (uintptr_t)(page + PAGE_SIZE - PKS_MIN_PASSWORD_SIZE), call->passed,
	    "up to the page's end");
	try_bad(call, 2, (uintptr_t)(page + PAGE_SIZE - PKS_MIN_PASSWORD_SIZE + 1),
		"over the page's end, by one byte");
	try_bad(call, 2, (uintptr_t)(page + PAGE_SIZE - 1),
		"over the page's end, by all but one byte");
	try_bad_size(call, 3, PKS_MIN_PASSWORD_SIZE, config.maxpwsize);
	try(call, 3, config.maxpwsize, call->passed, "the greatest");

	two.args[0] = 0;
	try(&two, 1, 1, H_PARAMETER, "a bad consumer comes first");
	two = *call;
	two.args[1] = 1;
	try(&two, 2, platform.ram_end, H_P2, "reserved comes before the buffer");
	two = *call;
	two.args[2] = platform.ram_end;
	try(&two, 3, 0, H_P3, "the buffer comes before the length");
}

static void test_bad_password(void)
{
	struct call generate = password_call("GEN_PASSWORD", H_PKS_GEN_PASSWORD);
	struct call set = password_call("SET_PASSWORD", H_PKS_SET_PASSWORD);

	if (!set_up())
		return;
	try_password_call(&generate);
	try_password_call(&set);
	tear_down();
}
STUB_TEST("pks_bad_password", test_bad_password, "pks pks_bad", true,
	  "hostile arguments of GEN_PASSWORD and SET_PASSWORD");

static void test_bad_write(void)
{
	struct call call, two;
	uint32_t greatest;

	if (!set_up())
		return;
	greatest = config.maxobjsize > config.maxlargeobjectsize ? config.maxobjsize :
								    config.maxlargeobjectsize;
	call = write_call();
	try(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	try_bad(&call, 3, 1, "undefined policy");
	try_bad(&call, 3, HIGH_WORD, "policy bit 32 set");
	try_bad(&call, 3, PKS_POLICY_WORLDREADABLE | HIGH_BIT, "policy bit 63 set");
	try_bad_address(&call, 4, call.args[5], 1);
	try(&call, 4, platform.ram_end - call.args[5], call.passed, "data at the end of RAM");
	try(&call, 4, (uintptr_t)(pks_data + PAGE_SIZE - 1), call.passed,
	    "data over a page's end");
	try_bad_size(&call, 5, 1, greatest);
	try(&call, 5, 1, call.passed, "the least");
	try(&call, 5, config.maxobjsize, call.passed, "the greatest");

	two = call;
	two.args[1] = platform.ram_end;
	try(&two, 0, platform.ram_end, H_PARAMETER, "authorization comes before label");
	two.args[2] = 0;
	try(&two, 3, 1, H_P2, "label comes before its length");
	two = call;
	two.args[3] = 1;
	try(&two, 2, 0, H_P3, "the label's length comes before the policy");
	try(&two, 4, platform.ram_end, H_P4, "the policy comes before the data");
	two = call;
	two.args[5] = 0;
	try(&two, 4, platform.ram_end, H_P5, "the data come before their length");
	pks_auth_fill(auth, PKS_CONSUMER_OS, NULL, 0);
	try(&two, -1, 0, H_P6, "arguments come before the password");
	try(&call, -1, 0, H_AUTHORITY, "the password comes before the label's object");
	set_auth(auth);
	tear_down();
}
STUB_TEST("pks_bad_write", test_bad_write, "pks pks_bad", true, "hostile arguments of WRITE");

static void test_bad_read(void)
{
	struct call call, two;

	if (!set_up())
		return;
	call = read_call();
	try(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	try_bad_address(&call, 3, OUT_SIZE, 1);
	try(&call, 3, platform.ram_end - OUT_SIZE, call.passed, "a buffer at the end of RAM");
	try(&call, 3, (uintptr_t)(pks_out + 1), call.passed, "a buffer at an odd address");
	try_bad_size(&call, 4, 0, HIGH_WORD - 1);
	if (platform.ram_end < HIGH_WORD)
		try(&call, 4, HIGH_WORD - 1, H_P4, "more than RAM holds");
	try(&call, 4, 0, H_TOO_BIG, "no room at all");
	try(&call, 4, 63, H_TOO_BIG, "one byte too little");
	try(&call, 4, 64, call.passed, "just enough");
	try(&call, 2, config.maxobjlabelsize, H_NOT_FOUND, "the longest label");

	two = call;
	two.args[4] = HIGH_WORD;
	try(&two, 3, platform.ram_end, H_P4, "the buffer comes before its length");
	two = call;
	two.args[3] = platform.ram_end;
	pks_auth_fill(auth, PKS_CONSUMER_OS, NULL, 0);
	try(&two, -1, 0, H_P4, "arguments come before the password");
	two = call;
	two.args[1] = (uintptr_t)absent.bytes;
	two.args[2] = absent.size;
	try(&two, -1, 0, H_AUTHORITY, "the password comes before the object");
	try(&call, 4, 0, H_AUTHORITY, "the password comes before the room");
	set_auth(auth);
	try(&two, 4, 0, H_NOT_FOUND, "the object comes before the room");
	tear_down();
}
STUB_TEST("pks_bad_read", test_bad_read, "pks pks_bad", true, "hostile arguments of READ");

static void try_label_call(struct call call, int64_t when_absent)
{
	struct call two = call;

	try(&call, -1, 0, call.passed, "good arguments");
	try_bad_auth(&call);
	try_bad_label(&call);
	try(&call, 2, config.maxobjlabelsize, when_absent, "the longest label");
	two.args[2] = 0;
	try(&two, 1, platform.ram_end, H_P2, "label comes before its length");
	pks_auth_fill(auth, PKS_CONSUMER_OS, NULL, 0);
	try(&two, -1, 0, H_P3, "arguments come before the password");
	try(&call, -1, 0, H_AUTHORITY, "the password comes before the object");
	set_auth(auth);
}

static void test_bad_remove(void)
{
	if (!set_up())
		return;
	try_label_call(object_call("REMOVE", H_PKS_REMOVE_OBJECT, H_NOT_FOUND, &absent),
		       H_NOT_FOUND);
	tear_down();
}
STUB_TEST("pks_bad_remove", test_bad_remove, "pks pks_bad", true,
	  "hostile arguments of REMOVE");

static void test_bad_confirm(void)
{
	if (!set_up())
		return;
	try_label_call(object_call("CONFIRM", H_PKS_CONFIRM_OBJECT_FLUSHED, H_SUCCESS, &present),
		       H_NOT_FOUND);
	tear_down();
}
STUB_TEST("pks_bad_confirm", test_bad_confirm, "pks pks_bad", true,
	  "hostile arguments of CONFIRM");

/* Names of consumers 1 and 2 may lie anywhere: Linux passes a string of its rodata. */
static void test_firmware_label(void)
{
	uint8_t *at = page + PAGE_SIZE - 3;
	struct hcall_regs regs;

	if (!set_up())
		return;
	memcpy(at, "SB_VERSIOX", 10);
	report_code(HCALL(&regs, H_PKS_READ_OBJECT, (uintptr_t)pks_auth(PKS_CONSUMER_FIRMWARE),
			  (uintptr_t)at, 10, (uintptr_t)pks_out, OUT_SIZE),
		    H_NOT_FOUND, "a firmware label over a page's end");
	tear_down();
}
STUB_TEST("pks_firmware_label", test_firmware_label, "pks pks_bad", true,
	  "labels of firmware lie anywhere");

static void try_from_user(const struct call *call)
{
	struct hcall_regs regs;
	unsigned int n, changed = 0;

	memset(pks_out, CANARY, WATCHED_SIZE);
	memset(page, CANARY, sizeof(page));
	hcall_fill(&regs, call->number, call->args, call->count);
	hcall_raw_user(&regs);
	report_code((int64_t)regs.r[3], H_PRIVILEGE, "%s from problem state", call->name);
	for (n = 4; n <= 12; n++)
		changed += regs.r[n] != (n - 4 < call->count ? call->args[n - 4] :
							       HCALL_POISON(n));
	report_equal(changed, 0, "changes no other register");
	report(memory_is(pks_out, CANARY, WATCHED_SIZE) &&
	       memory_is(page, CANARY, sizeof(page)) && pks_used_space() == used,
	       "and no memory and no object");
}

/* Arguments with which each call would do something, were it let. */
static void test_pks_user(void)
{
	struct call calls[7];
	unsigned int n;

	if (!set_up())
		return;
	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	calls[0] = config_call();
	calls[1] = password_call("GEN_PASSWORD", H_PKS_GEN_PASSWORD);
	calls[2] = password_call("SET_PASSWORD", H_PKS_SET_PASSWORD);
	calls[3] = write_call();
	calls[3].args[1] = (uintptr_t)absent.bytes;
	calls[3].args[2] = absent.size;
	calls[4] = read_call();
	calls[5] = object_call("REMOVE", H_PKS_REMOVE_OBJECT, H_SUCCESS, &present);
	calls[6] = object_call("CONFIRM", H_PKS_CONFIRM_OBJECT_FLUSHED, H_SUCCESS, &present);
	for (n = 0; n < sizeof(calls) / sizeof(calls[0]); n++)
		try_from_user(&calls[n]);
	tear_down();
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

	if (!set_up())
		return;
	memset(pks_out, CANARY, WATCHED_SIZE);
	for (n = 0; n < sizeof(numbers) / sizeof(numbers[0]); n++)
		report_code(HCALL(&regs, numbers[n], (uintptr_t)pks_out, PKS_CONFIG_SIZE_6_12),
			    H_FUNCTION, "0x%lx is no call", numbers[n]);
	report(memory_is(pks_out, CANARY, WATCHED_SIZE), "nothing was written");
	tear_down();
}
STUB_TEST("pks_number", test_pks_number, "pks pks_bad", true, "numbers that are no call");
