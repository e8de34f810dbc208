// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * WRAP and UNWRAP: what comes back, where buffers may lie, who may unwrap, and that no
 * altered bit passes. Busy answers are followed; what they look like is pks_token.c. Options:
 *	every=N		alter each Nth byte of a wrapped object (1)
 */
#include "console.h"
#include "pks.h"
#include "prng.h"
#include "string.h"
#include "test.h"

#define CANARY		0x4b
#define SMALL		32	/* bytes that Linux's trusted keys have */
#define SMALL_BLOB	(SMALL + PKS_WRAP_OVERHEAD)

static struct pks_label key, other;
static struct pks_config config;
static uint8_t blob[PKS_BUFFER_SIZE] __attribute__((aligned(4096)));

static bool make_key(unsigned int consumer, struct pks_label *label, const char *name,
		     uint32_t policy)
{
	pks_label_set(label, consumer, name);
	pks_remove(consumer, label);
	return report_code(pks_gen_key(consumer, label, PKS_POLICY_WRAPPINGKEY | policy, NULL,
				       PKS_WRAPPING_KEY_SIZE), H_SUCCESS,
			   "wrapping key '%s' for consumer %u, policy 0x%08x", name, consumer,
			   policy);
}

static bool set_up(void)
{
	if (!pks_open())
		return false;
	pks_get_config(&config);
	if (!(config.flags & PKS_CONFIG_FLAG_WRAP)) {
		report_skip("the configuration says that objects cannot be wrapped");
		return false;
	}
	return make_key(PKS_CONSUMER_OS, &key, "wrap", 0);
}

static void tear_down(void)
{
	report_code(pks_remove(PKS_CONSUMER_OS, &key), H_SUCCESS, "the key is removed");
}

static void fill_data(uint64_t seed, uint64_t size)
{
	struct prng prng;

	prng_seed(&prng, seed);
	prng_fill(&prng, pks_data, size);
}

static bool contains(const uint8_t *in, size_t in_size, const uint8_t *what, size_t size)
{
	size_t n;

	for (n = 0; n + size <= in_size; n++) {
		if (!memcmp(in + n, what, size))
			return true;
	}
	return false;
}

/* WRAP of pks_data into blob, where nothing else may be touched. */
static bool check_wrap(uint64_t size, uint32_t in_offset, uint32_t out_offset, uint64_t room)
{
	uint64_t wrapped = size + PKS_WRAP_OVERHEAD;
	uint32_t used = pks_used_space();
	struct pks_result result;

	memmove(pks_data + in_offset, pks_data, size);
	memset(blob, CANARY, sizeof(blob));
	result = pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT, pks_data + in_offset, size,
			  blob + out_offset, room);
	if (!report_code(result.code, H_SUCCESS, "WRAP of %lu bytes, offset %u to %u, room %lu",
			 size, in_offset, out_offset, room))
		return false;
	report_equal(result.r5, wrapped, "gives %u bytes more", PKS_WRAP_OVERHEAD);
	report_equal(result.r4, 0, "no token is left");
	report(memory_is(blob, CANARY, out_offset) &&
	       memory_is(blob + out_offset + wrapped, CANARY,
			 sizeof(blob) - out_offset - wrapped), "writes exactly these");
	report(size < 16 || !contains(blob + out_offset, wrapped, pks_data + in_offset, 16),
	       "the data are not to be seen");
	return report_equal(pks_used_space(), used, "takes no space");
}

static void check_unwrap(uint64_t size, uint32_t in_offset, uint32_t out_offset,
			 uint32_t data_offset, uint64_t room)
{
	uint64_t wrapped = size + PKS_WRAP_OVERHEAD;
	struct pks_result result;

	memset(pks_out, CANARY, PKS_BUFFER_SIZE);
	result = pks_unwrap(PKS_CONSUMER_OS, blob + in_offset, wrapped, pks_out + out_offset,
			    room);
	if (!report_code(result.code, H_SUCCESS, "UNWRAP of %lu bytes, offset %u to %u, room %lu",
			 wrapped, in_offset, out_offset, room))
		return;
	report_equal(result.r5, size, "gives as many bytes as went in");
	report_equal(result.r4, 0, "no token is left");
	report(!memcmp(pks_out + out_offset, pks_data + data_offset, size), "and the same");
	report(memory_is(pks_out, CANARY, out_offset) &&
	       memory_is(pks_out + out_offset + size, CANARY,
			 PKS_BUFFER_SIZE - out_offset - size), "writes exactly these");
}

static void check_too_large(uint64_t size)
{
	struct pks_result result;

	memset(blob, CANARY, sizeof(blob));
	result = pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT, pks_data, size, blob,
			  size + PKS_WRAP_OVERHEAD);
	report_code(result.code, H_P6, "WRAP of %lu bytes is more than it takes", size);
	report(memory_is(blob, CANARY, sizeof(blob)) && !result.r4, "and gives nothing");
}

static void test_pks_wrap(void)
{
	static const uint64_t sizes[] = { 1, 2, 15, 16, 17, 32, 33, 64, 128, 1000, 1024, 4095, 4096,
					  4097, 8191, 32768, 61440, 65535, 65536, 65537 };
	static uint8_t first[SMALL_BLOB];
	unsigned int n;

	if (!set_up())
		return;
	for (n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
		uint64_t size = sizes[n];
		uint32_t in = 7 * n % 64, out = 4095 - 5 * n;

		fill_data(n, size);
		if (size > pks_greatest_object(&config)) {
			check_too_large(size);
			continue;
		}
		if (!check_wrap(size, in, out, size + PKS_WRAP_OVERHEAD))
			continue;
		check_unwrap(size, out, n, in, size);
		check_unwrap(size, out, 4090, in, size + 1000);
	}
	/* More room than is needed, aligned as Linux does it. */
	fill_data(100, SMALL);
	if (check_wrap(SMALL, 0, 0, 65536)) {
		check_unwrap(SMALL, 0, 0, 0, 65536);
		memcpy(first, blob, SMALL_BLOB);
		if (check_wrap(SMALL, 0, 0, SMALL_BLOB)) {
			report(memcmp(first + SMALL_BLOB - SMALL - 16,
				      blob + SMALL_BLOB - SMALL - 16, SMALL + 16),
			       "the same data never look the same again");
			check_unwrap(SMALL, 0, 0, 0, SMALL);
		}
	}
	tear_down();
}
STUB_TEST("pks_wrap", test_pks_wrap, "pks pks_wrapping", true,
	  "what is wrapped comes back when it is unwrapped");

/* WRAP from in, UNWRAP to out, of size bytes, with blob_at between: any may overlap. */
static void check_places(uint8_t *in, uint8_t *blob_at, uint8_t *out, uint64_t size,
			 const char *what)
{
	struct pks_result result;

	fill_data(size, size);
	memcpy(in, pks_data, size);
	result = pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT, in, size, blob_at,
			  size + PKS_WRAP_OVERHEAD);
	report_code(result.code, H_SUCCESS, "WRAP of %lu bytes, %s", size, what);
	result = pks_unwrap(PKS_CONSUMER_OS, blob_at, size + PKS_WRAP_OVERHEAD, out, size);
	report_code(result.code, H_SUCCESS, "UNWRAP, %s", what);
	report(result.r5 == size && !memcmp(out, pks_data, size), "gives the data");
}

static void test_pks_wrap_places(void)
{
	uint8_t *end = (uint8_t *)platform.ram_end, *at = blob + 8192;
	static const int steps[] = { 0, 1, -1, 16, -16, 512, -512, 1008, 1024, -1024, 4000, -4000 };
	static struct pks_label moved;
	static const uint64_t sizes[] = { 1, 32, 1024, 4000 };
	struct pks_result result;
	unsigned int n, m;
	char what[48];

	if (!set_up())
		return;
	for (m = 0; m < sizeof(sizes) / sizeof(sizes[0]); m++) {
		uint64_t size = sizes[m] <= config.maxobjsize ? sizes[m] : config.maxobjsize;

		check_places(end - size, blob, pks_out, size, "data at the end of RAM");
		check_places(pks_out, end - size - PKS_WRAP_OVERHEAD, blob, size,
			     "wrapped object at the end of RAM");
		check_places(pks_out, blob, end - size, size, "result at the end of RAM");
		for (n = 0; n < sizeof(steps) / sizeof(steps[0]); n++) {
			format_text(what, sizeof(what), "overlapping by %d", steps[n]);
			check_places(at, at + steps[n], at + steps[n], size, what);
			check_places(at, at + steps[n], at, size, what);
		}
	}
	/* The result lies where label and authorization were, which were read before. */
	memcpy(&moved, &key, sizeof(moved));
	fill_data(5, SMALL);
	result = pks_wrap(PKS_CONSUMER_OS, &moved, PKS_WRAP_DEFAULT, pks_data, SMALL, moved.bytes,
			  SMALL_BLOB < sizeof(moved.bytes) ? SMALL_BLOB : sizeof(moved.bytes));
	report_code(result.code, H_P8, "WRAP over its label, without the room");
	report(!memcmp(&moved, &key, sizeof(moved)), "the label is as it was");
	memcpy(blob, &key, sizeof(key));
	result = pks_wrap(PKS_CONSUMER_OS, (struct pks_label *)blob, PKS_WRAP_DEFAULT, pks_data,
			  SMALL, blob, SMALL_BLOB);
	report_code(result.code, H_SUCCESS, "WRAP over its label");
	result = pks_unwrap(PKS_CONSUMER_OS, blob, SMALL_BLOB, pks_out, SMALL);
	report_code(result.code, H_SUCCESS, "UNWRAP of it");
	report(!memcmp(pks_out, pks_data, SMALL), "gives the data");
	tear_down();
}
STUB_TEST("pks_wrap_places", test_pks_wrap_places, "pks pks_wrapping", true,
	  "where the buffers of WRAP and UNWRAP may lie");

/* UNWRAP that must not succeed, nor write. True if so. */
static bool is_refused(const uint8_t *in, uint64_t size)
{
	struct pks_result result = pks_unwrap(PKS_CONSUMER_OS, in, size, pks_out, 4096);

	return (result.code == H_BAD_DATA || result.code == H_UNSUPPORTED ||
		result.code == H_NOT_FOUND || result.code == H_AUTHORITY ||
		result.code == H_P6) &&
	       !result.r4 && memory_is(pks_out, CANARY, 4096);
}

/* UNWRAP of the small object in blob. */
static void check_small(int64_t code, const char *what)
{
	struct pks_result result;

	memset(pks_out, CANARY, 4096);
	result = pks_unwrap(PKS_CONSUMER_OS, blob, SMALL_BLOB, pks_out, SMALL);
	report_code(result.code, code, "UNWRAP: %s", what);
	report_equal(result.r4, 0, "no token is left");
	if (code == H_SUCCESS)
		report(!memcmp(pks_out, pks_data, SMALL), "gives the data");
	else
		report(memory_is(pks_out, CANARY, 4096), "gives nothing");
}

static void test_pks_wrap_altered(void)
{
	static const uint8_t masks[] = { 0x01, 0x80, 0xff };
	const unsigned int sealed_at = SMALL_BLOB - SMALL - 16;
	unsigned int every = (unsigned int)arg_number("every", 1);
	unsigned int n, m, altered, refused;
	uint64_t size;

	if (!set_up())
		return;
	fill_data(9, SMALL);
	if (!every)
		every = 1;
	if (!check_wrap(SMALL, 0, 0, SMALL_BLOB))
		return;
	memset(pks_out, CANARY, 4096);
	for (m = 0; m < sizeof(masks); m++) {
		altered = refused = 0;
		for (n = 0; n < SMALL_BLOB; n += every) {
			blob[n] ^= masks[m];
			refused += is_refused(blob, SMALL_BLOB);
			blob[n] ^= masks[m];
			altered++;
		}
		report_equal(refused, altered, "each of %u bytes altered by 0x%02x is refused",
			     altered, masks[m]);
	}
	refused = 0;
	for (size = PKS_WRAP_OVERHEAD; size < SMALL_BLOB; size++)
		refused += is_refused(blob, size);
	report_equal(refused, SMALL, "each shorter one is refused");
	refused = 0;
	for (size = SMALL_BLOB + 1; size <= SMALL_BLOB + 64; size++)
		refused += is_refused(blob, size);
	report_equal(refused, 64, "and each longer one");
	memset(blob + 8192, 0, SMALL_BLOB);
	report(is_refused(blob + 8192, SMALL_BLOB), "zeros are refused");
	memset(blob + 8192, 0xff, SMALL_BLOB);
	report(is_refused(blob + 8192, SMALL_BLOB), "ones are refused");
	/* Head of one, rest of another. */
	memcpy(blob + 8192, blob, SMALL_BLOB);
	if (pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT, pks_data, SMALL, blob + 16384,
		     SMALL_BLOB).code == H_SUCCESS) {
		memcpy(blob + 8192 + sealed_at, blob + 16384 + sealed_at, SMALL + 16);
		report(is_refused(blob + 8192, SMALL_BLOB), "two halves of two are refused");
	}
	check_small(H_SUCCESS, "the object itself, after all this");
	tear_down();
}
STUB_TEST("pks_wrap_altered", test_pks_wrap_altered, "pks pks_wrapping", true,
	  "each byte of a wrapped object counts");

/*
 * Of a blob below 1024 bytes Linux asks for a result of almost 4 GiB, at the address of
 * an empty allocation.
 */
static void test_pks_wrap_short(void)
{
	static const uint64_t sizes[] = { 0, 1, 16, 100, 512, 1000, 1022, 1023 };
	void *const zero_size = (void *)0x10;
	static uint8_t low[0x100];
	struct pks_result result;
	unsigned int n;

	if (!set_up())
		return;
	fill_data(11, SMALL);
	if (!check_wrap(SMALL, 0, 0, SMALL_BLOB))
		return;
	memcpy(low, (const void *)(uintptr_t)0, sizeof(low));
	for (n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
		uint64_t room = (uint32_t)(sizes[n] - PKS_WRAP_OVERHEAD);

		result = pks_unwrap(PKS_CONSUMER_OS, blob, sizes[n], zero_size, room);
		report_code(result.code, H_P4, "UNWRAP of %lu bytes into 0x%lx at 0x10", sizes[n],
			    room);
		report_equal(result.r4, 0, "no token is left");
		result = pks_unwrap(PKS_CONSUMER_OS, zero_size, sizes[n], zero_size, room);
		report_code(result.code, H_P4, "from 0x10, too");
	}
	result = pks_unwrap(PKS_CONSUMER_OS, blob, PKS_WRAP_OVERHEAD, zero_size, 0);
	report_code(result.code, H_BAD_DATA, "UNWRAP of %u bytes into 0", PKS_WRAP_OVERHEAD);
	result = pks_unwrap(PKS_CONSUMER_OS, zero_size, SMALL_BLOB, pks_out, SMALL);
	report_code(result.code, H_BAD_DATA, "UNWRAP of what lies at 0x10");
	result = pks_unwrap(PKS_CONSUMER_OS, blob, SMALL_BLOB, zero_size, 0xffffffff);
	report_code(result.code, platform.ram_end < 0x10000000full ? H_P5 : H_SUCCESS,
		    "UNWRAP into 4 GiB");
	report(!memcmp(low, (const void *)(uintptr_t)0, sizeof(low)), "low memory is as it was");
	tear_down();
}
STUB_TEST("pks_wrap_short", test_pks_wrap_short, "pks pks_wrapping", true,
	  "objects that are too short to be one");

/* With an authorization made by hand. */
static int64_t unwrap_as(unsigned int consumer, const void *password, uint16_t size)
{
	static uint8_t auth[PAGE_SIZE] __attribute__((aligned(4096)));
	struct hcall_regs regs;

	pks_auth_fill(auth, consumer, password, size);
	return HCALL(&regs, H_PKS_UNWRAP_OBJECT, (uintptr_t)auth, 0, (uintptr_t)blob, SMALL_BLOB,
		     (uintptr_t)pks_out, SMALL, 0);
}

static int64_t wrap_as(unsigned int consumer, const struct pks_label *label, const void *password,
		       uint16_t size)
{
	static uint8_t auth[PAGE_SIZE] __attribute__((aligned(4096)));
	struct hcall_regs regs;

	pks_auth_fill(auth, consumer, password, size);
	return HCALL(&regs, H_PKS_WRAP_OBJECT, (uintptr_t)auth, (uintptr_t)label->bytes,
		     label->size, PKS_WRAP_DEFAULT, (uintptr_t)pks_data, SMALL,
		     (uintptr_t)pks_out, SMALL_BLOB, 0);
}

static void test_pks_wrap_authority(void)
{
	static uint8_t wrong[4096];
	struct pks_result result;
	const uint8_t *right;
	uint16_t size;

	if (!set_up())
		return;
	fill_data(13, SMALL);
	if (!check_wrap(SMALL, 0, 0, SMALL_BLOB))
		return;
	right = pks_password(PKS_CONSUMER_OS, &size);
	memcpy(wrong, right, size);
	wrong[size - 1] ^= 1;
	memset(pks_out, CANARY, 4096);
	report_code(unwrap_as(PKS_CONSUMER_OS, wrong, size), H_AUTHORITY,
		    "UNWRAP with a wrong password");
	report_code(unwrap_as(PKS_CONSUMER_OS, NULL, 0), H_AUTHORITY, "with none");
	report_code(wrap_as(PKS_CONSUMER_OS, &key, wrong, size), H_AUTHORITY,
		    "WRAP with a wrong password");
	report_code(wrap_as(PKS_CONSUMER_OS, &key, NULL, 0), H_AUTHORITY, "with none");
	report_code(pks_unwrap(PKS_CONSUMER_BOOTLOADER, blob, SMALL_BLOB, pks_out, SMALL).code,
		    H_AUTHORITY, "UNWRAP by another consumer");
	/* Not even with a key of the same name. */
	if (report_code(pks_gen_key(PKS_CONSUMER_BOOTLOADER, &key, PKS_POLICY_WRAPPINGKEY, NULL,
				    PKS_WRAPPING_KEY_SIZE), H_SUCCESS, "another one's key")) {
		report_code(pks_unwrap(PKS_CONSUMER_BOOTLOADER, blob, SMALL_BLOB, pks_out,
				       SMALL).code, H_AUTHORITY, "does not help");
		pks_remove(PKS_CONSUMER_BOOTLOADER, &key);
	}
	pks_label_set(&other, PKS_CONSUMER_OS, "wrap-absent");
	pks_remove(PKS_CONSUMER_OS, &other);
	result = pks_wrap(PKS_CONSUMER_OS, &other, PKS_WRAP_DEFAULT, pks_data, SMALL, pks_out,
			  SMALL_BLOB);
	report_code(result.code, H_NOT_FOUND, "WRAP with a key that is not there");
	report_equal(result.r4, 0, "no token is left");
	pks_write(PKS_CONSUMER_OS, &other, 0, pks_data, PKS_WRAPPING_KEY_SIZE);
	result = pks_wrap(PKS_CONSUMER_OS, &other, PKS_WRAP_DEFAULT, pks_data, SMALL, pks_out,
			  SMALL_BLOB);
	report_code(result.code, H_AUTHORITY, "WRAP with an object that is no wrapping key");
	report(memory_is(pks_out, CANARY, 4096), "all of them gave nothing");
	pks_remove(PKS_CONSUMER_OS, &other);
	check_small(H_SUCCESS, "by whom it may");

	report_code(pks_remove(PKS_CONSUMER_OS, &key), H_SUCCESS, "the key is removed");
	check_small(H_NOT_FOUND, "without its key");
	if (make_key(PKS_CONSUMER_OS, &key, "wrap", 0))
		check_small(H_BAD_DATA, "with a new key of the same name");
	tear_down();
}
STUB_TEST("pks_wrap_authority", test_pks_wrap_authority, "pks pks_wrapping", true,
	  "who may wrap and unwrap");

static void try_flags(uint64_t flags, int64_t code)
{
	struct pks_result result;

	memset(pks_out, CANARY, 4096);
	result = pks_wrap(PKS_CONSUMER_OS, &key, flags, pks_data, SMALL, pks_out, SMALL_BLOB);
	report_code(result.code, code, "WRAP with flags 0x%016lx", flags);
	if (code != H_SUCCESS)
		report(memory_is(pks_out, CANARY, 4096) && !result.r4, "gives nothing");
}

static void test_pks_wrap_flags(void)
{
	const uint64_t both = PKS_WRAP_FLAG_OSSECBOOTAUDIT | PKS_WRAP_FLAG_OSSECBOOTENFORCE;
	unsigned int n;

	if (!set_up())
		return;
	for (n = 0; n < 64; n++) {
		uint64_t bit = 1ull << n;

		try_flags(PKS_WRAP_DEFAULT ^ bit, bit & both ? H_SUCCESS : H_P4);
	}
	for (n = 0; n < 16; n++)
		try_flags(PKS_WRAP_FLAG_PASSWORD | n, n == PKS_WRAP_FLAG_AES_GCM_256 ? H_SUCCESS :
									   H_P4);
	try_flags(PKS_WRAP_DEFAULT | both, H_P4);
	try_flags(both | PKS_WRAP_FLAG_AES_GCM_256, H_P4);
	try_flags(0, H_P4);
	try_flags(~0ull, H_P4);
	tear_down();
}
STUB_TEST("pks_wrap_flags", test_pks_wrap_flags, "pks pks_wrapping", true,
	  "which flags WRAP takes");

/* A condition of the wrapped object, then one of the key. */
static void check_condition(uint64_t flag, uint32_t policy, bool open, const char *what)
{
	int64_t expected = open ? H_SUCCESS : H_AUTHORITY;
	struct pks_result result;

	result = pks_wrap(PKS_CONSUMER_OS, &key, PKS_WRAP_DEFAULT | flag, pks_data, SMALL, blob,
			  SMALL_BLOB);
	if (report_code(result.code, H_SUCCESS, "WRAP for secure boot %s", what))
		check_small(expected, what);
	if ((config.supportedpolicies & policy) != policy) {
		report_skip("policy 0x%08x is not supported", policy);
		return;
	}
	/* TRANSIENT, since it may be that it cannot be removed. */
	if (!make_key(PKS_CONSUMER_OS, &other, what, policy | PKS_POLICY_TRANSIENT))
		return;
	result = pks_wrap(PKS_CONSUMER_OS, &other, PKS_WRAP_DEFAULT, pks_data, SMALL, blob,
			  SMALL_BLOB);
	report_code(result.code, expected, "WRAP with a key for secure boot %s", what);
	if (open)
		check_small(H_SUCCESS, what);
	report_code(pks_remove(PKS_CONSUMER_OS, &other), expected, "REMOVE of the key");
}

static void test_pks_wrap_secure_boot(void)
{
	int state = platform.secure_boot < 0 ? 0 : platform.secure_boot;

	if (!set_up())
		return;
	report_info("secure boot state %d", state);
	fill_data(17, SMALL);
	check_condition(PKS_WRAP_FLAG_OSSECBOOTAUDIT, PKS_POLICY_OSSECBOOTAUDIT, state >= 1,
			"audit");
	check_condition(PKS_WRAP_FLAG_OSSECBOOTENFORCE, PKS_POLICY_OSSECBOOTENFORCE, state == 2,
			"enforce");
	tear_down();
}
STUB_TEST("pks_wrap_secure_boot", test_pks_wrap_secure_boot,
	  "pks pks_wrapping pks_secure_boot", true,
	  "objects and wrapping keys bound to the secure boot state");
