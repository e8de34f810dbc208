// SPDX-License-Identifier: GPL-2.0-or-later
/* Hostile arguments, one at a time. */
#include "pks_try.h"

#include "console.h"
#include "string.h"
#include "test.h"

struct trial trial;

/* H_PARAMETER, H_P2, ...: "argument n is bad", n from 0. */
static int64_t bad_arg_code(unsigned int n)
{
	static const int64_t codes[] = { H_PARAMETER, H_P2, H_P3, H_P4, H_P5,
					 H_P6, H_P7, H_P8, H_P9 };

	return codes[n];
}

void try_call(const struct call *call, int n, uint64_t value, int64_t expected,
	      const char *what)
{
	uint64_t args[9];
	struct hcall_regs regs;
	int64_t code;
	bool silent;

	memcpy(args, call->args, sizeof(args));
	if (n >= 0)
		args[n] = value;
	memset(pks_out, TRY_CANARY, TRY_WATCHED_SIZE);
	memset(trial.page, TRY_CANARY, sizeof(trial.page));
	do {
		hcall_fill(&regs, call->number, args, call->count);
		hcall_raw(&regs);
		code = (int64_t)regs.r[3];
		if (call->token)
			args[call->token] = regs.r[4];
	} while (call->token && pks_is_busy(code));
	silent = memory_is(pks_out, TRY_CANARY, TRY_WATCHED_SIZE) &&
		 memory_is(trial.page, TRY_CANARY, sizeof(trial.page));

	if (n >= 0)
		report_code(code, expected, "%s r%d=0x%lx: %s", call->name, n + 4, value, what);
	else
		report_code(code, expected, "%s: %s", call->name, what);
	if (code != H_SUCCESS && !silent)
		report(false, "%s failed but wrote to memory", call->name);
	if (call->token && regs.r[4])
		report(false, "%s leaves 0x%lx in r4, where a token would be", call->name,
		       regs.r[4]);
	if (pks_used_space() != trial.used) {
		report(false, "%s changed the space in use", call->name);
		trial.used = pks_used_space();
	}
}

void try_bad(const struct call *call, unsigned int n, uint64_t value, const char *what)
{
	try_call(call, (int)n, value, bad_arg_code(n), what);
}

void try_bad_address(const struct call *call, unsigned int n, uint64_t size, uint64_t step)
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
	try_call(call, (int)n, good | HIGH_BIT, call->passed, "bit 63 set: does not count");
	try_call(call, (int)n, good | 0xc000000000000000ull, call->passed,
		 "a kernel's linear address: its top bits do not count");
	try_call(call, (int)n, good | 1ull << 60, call->passed, "bit 60 set: does not count");
}

void try_bad_size(const struct call *call, unsigned int n, uint64_t min, uint64_t max)
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

void try_set_auth(void *at)
{
	uint16_t size;
	const uint8_t *password = pks_password(PKS_CONSUMER_OS, &size);

	pks_auth_fill(at, PKS_CONSUMER_OS, password, size);
}

void try_bad_auth(const struct call *call)
{
	static const uint8_t versions[] = { 0, 2, 255 }, consumers[] = { 0, 4, 255 };
	static const unsigned int misaligned[] = { 1, 2, 4, 8, 15 };
	uint8_t *last = (uint8_t *)(platform.ram_end - PKS_AUTH_HEADER_SIZE);
	uint64_t size = PKS_AUTH_HEADER_SIZE + trial.config.maxpwsize;
	unsigned int n;
	char what[48];

	try_bad_address(call, 0, size, PKS_AUTH_ALIGNMENT);
	for (n = 0; n < sizeof(versions); n++) {
		try_set_auth(trial.auth);
		trial.auth[PKS_AUTH_VERSION] = versions[n];
		format_text(what, sizeof(what), "authorization version %u", versions[n]);
		try_bad(call, 0, (uintptr_t)trial.auth, what);
	}
	for (n = 0; n < sizeof(consumers); n++) {
		try_set_auth(trial.auth);
		trial.auth[PKS_AUTH_CONSUMER] = consumers[n];
		format_text(what, sizeof(what), "consumer %u", consumers[n]);
		try_bad(call, 0, (uintptr_t)trial.auth, what);
	}
	for (n = 0; n < PKS_AUTH_RESERVED_SIZE; n++) {
		try_set_auth(trial.auth);
		trial.auth[PKS_AUTH_RESERVED + n] = n & 1 ? 0x80 : 1;
		format_text(what, sizeof(what), "reserved byte %u", PKS_AUTH_RESERVED + n);
		try_bad(call, 0, (uintptr_t)trial.auth, what);
	}
	try_set_auth(trial.auth);
	store_be16(trial.auth + PKS_AUTH_PASSWORD_SIZE, trial.config.maxpwsize + 1);
	try_bad(call, 0, (uintptr_t)trial.auth, "password length above maxpwsize");
	store_be16(trial.auth + PKS_AUTH_PASSWORD_SIZE, 0xffff);
	try_bad(call, 0, (uintptr_t)trial.auth, "password length 65535");
	for (n = 0; n < sizeof(misaligned) / sizeof(misaligned[0]); n++) {
		try_set_auth(trial.auth + misaligned[n]);
		format_text(what, sizeof(what), "misaligned by %u", misaligned[n]);
		try_bad(call, 0, (uintptr_t)(trial.auth + misaligned[n]), what);
	}

	try_set_auth(trial.auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE);
	try_bad(call, 0, (uintptr_t)(trial.auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE),
		"password beyond the page");
	pks_auth_fill(trial.auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE, PKS_CONSUMER_OS, NULL, 0);
	try_call(call, 0, (uintptr_t)(trial.auth + PAGE_SIZE - PKS_AUTH_HEADER_SIZE), H_AUTHORITY,
		 "no password, at the page's end: well-formed, and wrong");
	if (size % PKS_AUTH_ALIGNMENT == 0) {
		try_set_auth(trial.auth + PAGE_SIZE - size);
		try_call(call, 0, (uintptr_t)(trial.auth + PAGE_SIZE - size), call->passed,
			 "password up to the page's end");
		try_set_auth(trial.auth + PAGE_SIZE - size + PKS_AUTH_ALIGNMENT);
		try_bad(call, 0, (uintptr_t)(trial.auth + PAGE_SIZE - size + PKS_AUTH_ALIGNMENT),
			"password over the page's end");
	}
	pks_auth_fill(last, PKS_CONSUMER_OS, NULL, 0);
	try_call(call, 0, (uintptr_t)last, H_AUTHORITY, "no password, at the end of RAM");
	store_be16(last + PKS_AUTH_PASSWORD_SIZE, PKS_MIN_PASSWORD_SIZE);
	try_bad(call, 0, (uintptr_t)last, "password past the end of RAM");
	try_set_auth(trial.auth);
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
	uint8_t *at = trial.auth + PAGE_SIZE;
	unsigned int n;

	for (n = 0; n < sizeof(headers) / sizeof(headers[0]); n++) {
		memcpy(at, (const uint8_t *)call->args[1], call->args[2]);
		at[headers[n].offset] = headers[n].value;
		try_bad(call, 1, (uintptr_t)at, headers[n].what);
	}
}

void try_bad_label(const struct call *call)
{
	const uint8_t *label = (const uint8_t *)call->args[1];
	uint64_t size = call->args[2];
	uint8_t *at;

	try_bad_address(call, 1, size, 1);
	at = (uint8_t *)platform.ram_end - size;
	memcpy(at, label, size);
	try_call(call, 1, (uintptr_t)at, call->passed, "label at the end of RAM");
	at = trial.auth + 2 * PAGE_SIZE - size;
	memcpy(at, label, size);
	try_call(call, 1, (uintptr_t)at, call->passed, "label at a page's end");
	at = trial.auth + PAGE_SIZE;
	memcpy(at + 1, label, size);
	try_call(call, 1, (uintptr_t)(at + 1), call->passed, "label at an odd address");
	/* Of the operating system's labels Linux says that they do not cross a page. */
	at = trial.auth + PAGE_SIZE - 1;
	memcpy(at, label, size);
	try_bad(call, 1, (uintptr_t)at, "label over a page's end, by all but one byte");
	at = trial.auth + PAGE_SIZE - size + 1;
	memcpy(at, label, size);
	try_bad(call, 1, (uintptr_t)at, "label over a page's end, by one byte");
	try_set_auth(trial.auth);

	try_bad_size(call, 2, 1, trial.config.maxobjlabelsize);
	try_bad(call, 2, PKS_LABEL_HEADER_SIZE - 1, "not all of the label's header");
	try_bad_header(call);
}

struct call object_call(const char *name, uint64_t number, int64_t passed,
			const struct pks_label *label)
{
	struct call call = {
		.name = name, .number = number, .passed = passed, .count = 3,
		.args = { (uintptr_t)trial.auth, (uintptr_t)label->bytes, label->size },
	};

	return call;
}

void try_note_used(void)
{
	trial.used = pks_used_space();
}

bool try_set_up(void)
{
	if (!pks_open())
		return false;
	pks_get_config(&trial.config);
	try_set_auth(trial.auth);
	pks_label_set(&trial.present, PKS_CONSUMER_OS, "bad-present");
	pks_label_set(&trial.absent, PKS_CONSUMER_OS, "bad-absent");
	pks_remove(PKS_CONSUMER_OS, &trial.present);
	pks_remove(PKS_CONSUMER_OS, &trial.absent);
	memset(pks_data, 0x11, 64);
	if (!report_code(pks_write(PKS_CONSUMER_OS, &trial.present, 0, pks_data, 64), H_SUCCESS,
			 "an object to work with"))
		return false;
	try_note_used();
	return true;
}

void try_tear_down(void)
{
	report_code(pks_remove(PKS_CONSUMER_OS, &trial.present), H_SUCCESS,
		    "the object is still there");
}

