// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * SIGNED_UPDATE. Which form a message must have is shown with one that nobody has signed:
 * H_AUTHORITY says that it is well-formed. Messages that are signed
 * come from a host, as an initrd; see README.md, "Signed updates from a host".
 */
#include "console.h"
#include "pks.h"
#include "pks_try.h"
#include "prng.h"
#include "string.h"
#include "test.h"

#define HEAD_SIZE	PKS_SIGNED_UPDATE_MIN_SIZE
#define CERT_LENGTH_AT	16
#define CERT_REVISION_AT 20
#define CERT_TYPE_AT	22
#define CERT_GUID_AT	24
#define DB_POLICY	(PKS_POLICY_SIGNEDUPDATE | PKS_POLICY_WORLDREADABLE)
#define CANARY		0x71

static struct pks_label label;
static struct pks_config config;

static struct call signed_call(void)
{
	struct call call = object_call("SIGNED_UPDATE", H_PKS_SIGNED_UPDATE, H_AUTHORITY, &label);

	call.args[3] = DB_POLICY;
	call.args[4] = 0;
	call.args[5] = (uintptr_t)pks_data;
	call.args[6] = PKS_MESSAGE_SIZE;
	call.args[7] = 0;
	call.count = 8;
	call.token = 7;
	return call;
}

static bool set_up(void)
{
	if (!try_set_up())
		return false;
	if (!(trial.config.supportedpolicies & PKS_POLICY_SIGNEDUPDATE)) {
		report_skip("SIGNEDUPDATE is not among supportedpolicies");
		return false;
	}
	pks_variable_label(&label, "d\0b", 4);
	pks_message_fill(pks_data);
	return true;
}

static void tear_down(void)
{
	report_code(pks_read(PKS_CONSUMER_OS, &label, pks_out, 4096).code, H_NOT_FOUND,
		    "there is no variable after all this");
	try_tear_down();
}

static void test_bad_signed(void)
{
	static const uint64_t tokens[] = { 1, 0xffffffff, HIGH_WORD, HIGH_BIT, ~0ull };
	struct call call, two;
	unsigned int n;

	if (!set_up())
		return;
	call = signed_call();
	try_call(&call, -1, 0, call.passed, "well-formed, and signed by nobody");
	try_bad_auth(&call);
	try_bad_label(&call);
	for (n = 0; n < 64; n++) {
		if (!(1ull << n & trial.config.supportedpolicies))
			try_bad(&call, 3, 1ull << n | DB_POLICY, "undefined policy");
	}
	try_bad(&call, 3, 0, "no SIGNEDUPDATE");
	try_bad(&call, 3, PKS_POLICY_WORLDREADABLE, "no SIGNEDUPDATE");
	try_bad(&call, 3, DB_POLICY | PKS_POLICY_WRAPPINGKEY, "a wrapping key");
	try_bad(&call, 3, DB_POLICY | PKS_POLICY_HVPROVISIONED, "the hypervisor's own");
	for (n = 1; n < 64; n++)
		try_bad(&call, 4, 1ull << n, "unknown flag");
	try_bad(&call, 4, 3, "append and an unknown flag");
	try_call(&call, 4, 1, call.passed, "append");
	try_bad_address(&call, 5, PKS_MESSAGE_SIZE, 1);
	pks_message_fill((uint8_t *)platform.ram_end - PKS_MESSAGE_SIZE);
	try_call(&call, 5, platform.ram_end - PKS_MESSAGE_SIZE, call.passed,
		 "a message at the end of RAM");
	for (n = 1; n < 16; n += 2) {
		pks_message_fill(pks_data + 4096 - n);
		try_call(&call, 5, (uintptr_t)pks_data + 4096 - n, call.passed,
			 "a message at an odd address, over a page's end");
	}
	pks_message_fill(pks_data);
	try_bad_size(&call, 6, PKS_SIGNED_UPDATE_MIN_SIZE, 65536);
	try_bad(&call, 6, 65536, "more than 16 bits");
	try_bad(&call, 6, PKS_SIGNED_UPDATE_MIN_SIZE, "the head only, which says there is more");
	for (n = 0; n < sizeof(tokens) / sizeof(tokens[0]); n++)
		try_bad(&call, 7, tokens[n], "a token that was never given");

	two = call;
	two.args[2] = 0;
	try_call(&two, 3, 1, H_P3, "the label's length comes before the policy");
	two = call;
	two.args[4] = 2;
	try_call(&two, 3, 1, H_P4, "the policy comes before the flags");
	try_call(&two, 5, platform.ram_end, H_P5, "the flags come before the message");
	two = call;
	two.args[5] = platform.ram_end;
	try_call(&two, 6, 0, H_P6, "the message comes before its length");
	two = call;
	two.args[6] = PKS_SIGNED_UPDATE_MIN_SIZE - 1;
	try_call(&two, 7, 1, H_P7, "the length comes before the token");
	pks_auth_fill(trial.auth, PKS_CONSUMER_OS, NULL, 0);
	pks_data[7] = 1;
	try_call(&call, -1, 0, H_AUTHORITY, "the password comes before what the message is");
	try_set_auth(trial.auth);
	try_call(&call, -1, 0, H_P6, "a malformed message");
	tear_down();
}
STUB_TEST("pks_bad_signed", test_bad_signed, "pks pks_bad", true,
	  "hostile arguments of SIGNED_UPDATE");

/* The message with one byte replaced. */
static void try_byte(unsigned int at, uint8_t value, int64_t code, const char *what)
{
	struct call call = signed_call();

	pks_message_fill(pks_data);
	pks_data[at] = value;
	try_call(&call, -1, 0, code, what);
}

static void try_label(const void *name, uint64_t size, int64_t code, const char *what)
{
	static struct pks_label named;
	struct call call = signed_call();

	pks_variable_label(&named, name, size);
	call.args[1] = (uintptr_t)named.bytes;
	call.args[2] = named.size;
	try_call(&call, -1, 0, code, what);
}

static void test_pks_signed_form(void)
{
	static const struct {
		unsigned int at;
		const char *what;
	} zeros[] = {
		{ 7, "first padding byte of the time" }, { 8, "nanoseconds" },
		{ 11, "nanoseconds" }, { 12, "time zone" }, { 13, "time zone" },
		{ 14, "daylight" }, { 15, "last padding byte of the time" },
	};
	struct call call;
	unsigned int n;

	if (!set_up())
		return;
	for (n = 0; n < 7; n++)
		try_byte(n, 0xff, H_AUTHORITY, "the date is not looked at");
	for (n = 0; n < sizeof(zeros) / sizeof(zeros[0]); n++)
		try_byte(zeros[n].at, 1, H_P6, zeros[n].what);
	try_byte(CERT_LENGTH_AT + 3, 0x80, H_P7, "certificate longer than the message");
	try_byte(CERT_LENGTH_AT + 1, 0xff, H_P7, "certificate longer than the message");
	try_byte(CERT_LENGTH_AT + 1, 0, H_P6, "certificate shorter than it is");
	for (n = CERT_REVISION_AT; n < HEAD_SIZE; n++)
		try_byte(n, 0x55, H_P6, n < CERT_TYPE_AT ? "revision" :
					n < CERT_GUID_AT ? "type" : "GUID");
	try_byte(HEAD_SIZE, 0x31, H_P6, "no sequence");
	try_byte(HEAD_SIZE + 2, 0x02, H_P6, "a sequence that is too long");
	try_byte(HEAD_SIZE + 3, 0x50, H_P6, "a sequence that is too short");
	try_byte(HEAD_SIZE + 21, 0x02, H_P6, "another digest");

	pks_message_fill(pks_data);
	memset(pks_data + CERT_LENGTH_AT, 0, 4);
	pks_data[CERT_LENGTH_AT] = 24;
	call = signed_call();
	try_call(&call, -1, 0, H_P6, "a certificate that is empty");
	pks_data[CERT_LENGTH_AT] = 23;
	try_call(&call, -1, 0, H_P6, "a certificate shorter than its head");

	pks_message_fill(pks_data);
	try_label("P\0K", 4, H_AUTHORITY, "PK, without the latch");
	try_label("x\0y\0z", 6, H_AUTHORITY, "a name that nobody knows");
	try_label("\0\1", 2, H_AUTHORITY, "a character whose first byte is 0");
	try_label("d\0b", 3, H_P3, "a name of three bytes");
	try_label("", 0, H_P3, "no name");
	try_label("d\0\0\0b", 6, H_P2, "a NUL character");
	try_label("d\0b\0\0", 6, H_P2, "a terminator");
	call.args[4] = 1;
	pks_variable_label(&label, "P\0K", 4);
	call.args[2] = label.size;
	try_call(&call, -1, 0, H_P5, "PK is not appended to");
	pks_variable_label(&label, "d\0b", 4);
	call = signed_call();
	label.bytes[0] = 'x';
	try_call(&call, -1, 0, H_P2, "a label with a prefix");
	label.bytes[0] = 0;
	label.bytes[9] = 4;
	try_call(&call, -1, 0, H_P2, "a label of another operating system");
	label.bytes[9] = 2;
	for (n = 1; n < PKS_CONSUMER_OS; n++) {
		uint16_t size;
		const uint8_t *password = pks_password(n, &size);

		pks_auth_fill(trial.auth, n, password, size);
		try_call(&call, -1, 0, H_PARAMETER, "variables are not this consumer's");
	}
	try_set_auth(trial.auth);
	tear_down();
}
STUB_TEST("pks_signed_form", test_pks_signed_form, "pks", true,
	  "which messages SIGNED_UPDATE takes for one");

/* -- messages from a host ----------------------------------------------------------- */

#define SCRIPT_MAGIC	"STUBUPD1"
#define SCRIPT_HEAD	20	/* magic, checksum of the rest, number of steps */
#define STEP_HEAD	36
#define NO_OBJECT	0xffffffffu

struct step {
	uint32_t name_size, policy, message_size, content_size, altered, object_policy;
	uint64_t flags;
	int64_t code;
	const uint8_t *name, *message, *content;
};

/* The next step, or false when the script is malformed. */
static bool next_step(const uint8_t **at, const uint8_t *end, struct step *step)
{
	const uint8_t *p = *at;
	uint64_t size;

	if (end - p < STEP_HEAD)
		return false;
	step->name_size = load_be32(p);
	step->policy = load_be32(p + 4);
	step->flags = load_be64(p + 8);
	step->message_size = load_be32(p + 16);
	step->code = (int32_t)load_be32(p + 20);
	step->content_size = load_be32(p + 24);
	step->altered = load_be32(p + 28);
	step->object_policy = load_be32(p + 32);
	p += STEP_HEAD;
	size = (uint64_t)step->name_size + step->message_size +
	       (step->content_size == NO_OBJECT ? 0 : step->content_size);
	if (size > (uint64_t)(end - p) || step->altered > step->message_size ||
	    step->name_size > PKS_MAX_LABEL_SIZE - PKS_LABEL_HEADER_SIZE ||
	    step->message_size > 65535)
		return false;
	step->name = p;
	step->message = p + step->name_size;
	step->content = step->message + step->message_size;
	*at = p + size;
	return true;
}

/* Space that the variable takes, in the keystore's count. */
static uint64_t space_of(const struct pks_result *read)
{
	return read->code == H_SUCCESS ? config.objoverhead + label.size + read->r4 : 0;
}

static void check_object(const struct step *step, struct pks_result *read)
{
	memset(pks_out, CANARY, PKS_BUFFER_SIZE);
	*read = pks_read(PKS_CONSUMER_OS, &label, pks_out, PKS_BUFFER_SIZE);
	if (step->content_size == NO_OBJECT) {
		report_code(read->code, H_NOT_FOUND, "there is no such object");
		return;
	}
	if (!report_code(read->code, H_SUCCESS, "READ"))
		return;
	report_equal(read->r4, step->content_size, "its size");
	report(!memcmp(pks_out, step->content, step->content_size), "its contents");
	report_equal(read->r5, step->object_policy, "its policy");
	report_code(pks_remove(PKS_CONSUMER_OS, &label), H_AUTHORITY, "REMOVE of it");
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 8), H_RESOURCE,
		    "WRITE over it");
}

/* Each byte of the head, and as many at the end as the script says: none may pass. */
static void try_altered(const struct step *step, uint8_t *message)
{
	unsigned int n, tried = 0, passed = 0, told = 0;
	uint32_t used = pks_used_space();

	for (n = 0; n < step->message_size; n++) {
		struct pks_result result;

		if (n >= HEAD_SIZE && n < step->message_size - step->altered)
			continue;
		message[n] ^= 0x01;
		result = pks_signed_update(PKS_CONSUMER_OS, &label, step->policy, step->flags,
					   message, step->message_size);
		message[n] ^= 0x01;
		tried++;
		passed += result.code == H_SUCCESS;
		told += result.r4 != 0;
	}
	report_equal(passed, 0, "none of %u altered messages is taken", tried);
	report_equal(told, 0, "nor leaves a token");
	report_equal(pks_used_space(), used, "nor changes the space in use");
}

static void run_step(const struct step *step, unsigned int number)
{
	uint8_t *message = pks_data + 4096 - number % 64;
	/* PK cannot be emptied or removed but by the wipe. */
	bool wipes = step->content_size == NO_OBJECT && step->code == H_SUCCESS &&
		     step->name_size == 4 && !memcmp(step->name, "P\0K", 4);
	struct pks_result before, after, result;
	uint32_t used;

	pks_variable_label(&label, step->name, step->name_size);
	used = pks_used_space();
	before = pks_read(PKS_CONSUMER_OS, &label, pks_out, PKS_BUFFER_SIZE);
	if (step->message_size) {
		memcpy(message, step->message, step->message_size);
		if (step->altered)
			try_altered(step, message);
		result = pks_signed_update(PKS_CONSUMER_OS, &label, step->policy, step->flags,
					   message, step->message_size);
		report_code(result.code, step->code, "step %u: SIGNED_UPDATE", number);
		report_equal(result.r4, 0, "no token is left");
		report(!memcmp(message, step->message, step->message_size),
		       "the message is as it was");
	} else {
		report_info("step %u: looks only", number);
	}
	check_object(step, &after);
	if (!step->message_size)
		return;
	if (step->code != H_SUCCESS) {
		report_equal(pks_used_space(), used, "space is as before");
		return;
	}
	/* A wipe takes other variables away, too, which the script looks at by itself. */
	if (!wipes)
		report_equal(pks_used_space(), used + space_of(&after) - space_of(&before),
			     "the difference is counted");
	result = pks_confirm_wait(PKS_CONSUMER_OS, &label);
	report_code(result.code, step->content_size == NO_OBJECT ? H_NOT_FOUND : H_SUCCESS,
		    "CONFIRM");
	report_equal(result.r4, 1, "says flushed");
}

static void test_signed_script(void)
{
	const uint8_t *at = (const uint8_t *)platform.initrd, *end;
	struct step step;
	uint32_t count, n;

	if (!pks_open())
		return;
	pks_get_config(&config);
	if (platform.initrd_size < SCRIPT_HEAD || memcmp(at, SCRIPT_MAGIC, 8)) {
		report_skip("no script of signed updates: start QEMU with -initrd");
		return;
	}
	end = at + platform.initrd_size;
	if (!report_equal(fnv1a(at + 16, platform.initrd_size - 16), load_be64(at + 8),
			  "the script's checksum"))
		return;
	count = load_be32(at + 16);
	at += SCRIPT_HEAD;
	for (n = 1; n <= count; n++) {
		if (!report(next_step(&at, end, &step), "step %u can be read", n))
			return;
		run_step(&step, n);
	}
	report(at == end, "that was all");
}
STUB_TEST("signed_script", test_signed_script, "signed-script", false,
	  "signed updates that a host has made");
