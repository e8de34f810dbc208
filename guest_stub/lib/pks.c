// SPDX-License-Identifier: GPL-2.0-or-later
/* The Platform KeyStore from a guest's side. */
#include "pks.h"

#include <stddef.h>

#include "smp.h"
#include "string.h"
#include "test.h"
#include "timebase.h"

#define MAX_PASSWORD	1024
#define LINUX_OS	0x02

uint8_t pks_data[PKS_BUFFER_SIZE] __attribute__((aligned(4096)));
uint8_t pks_out[PKS_BUFFER_SIZE] __attribute__((aligned(4096)));

static uint8_t auth_page[MAX_CPUS][4096] __attribute__((aligned(4096)));

static struct {
	bool is_set;
	uint16_t size;
	uint8_t bytes[MAX_PASSWORD];
} passwords[PKS_CONSUMERS + 1];

bool pks_announced(void)
{
	if (platform_has_hypertas("hcall-pks"))
		return true;
	report_skip("hcall-pks is not announced to this partition");
	return false;
}

bool pks_open_consumer(unsigned int consumer)
{
	static uint8_t page[4096] __attribute__((aligned(4096)));
	struct pks_config config;
	int64_t code;

	if (passwords[consumer].is_set)
		return true;
	code = pks_get_config(&config);
	if (code != H_SUCCESS)
		return report_code(code, H_SUCCESS, "the keystore answers");
	code = pks_gen_password(consumer, page, config.maxpwsize);
	if (code != H_SUCCESS)
		return report_code(code, H_SUCCESS, "consumer %u gets a password", consumer);
	pks_keep_password(consumer, page, config.maxpwsize);
	return true;
}

bool pks_open(void)
{
	unsigned int consumer;

	if (!pks_announced())
		return false;
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		if (!pks_open_consumer(consumer))
			return false;
	}
	return true;
}

void pks_parse_config(const uint8_t *bytes, struct pks_config *config)
{
	config->version = bytes[0];
	config->flags = bytes[1];
	config->reserved = load_be16(bytes + 2);
	config->objoverhead = load_be16(bytes + 4);
	config->maxpwsize = load_be16(bytes + 6);
	config->maxobjlabelsize = load_be16(bytes + 8);
	config->maxobjsize = load_be16(bytes + 10);
	config->totalsize = load_be32(bytes + 12);
	config->usedspace = load_be32(bytes + 16);
	config->supportedpolicies = load_be32(bytes + 20);
	config->maxlargeobjectsize = load_be32(bytes + 24);
	config->signedupdatealgorithms = load_be64(bytes + 28);
	config->wrappingfeatures = load_be64(bytes + 36);
}

int64_t pks_get_config(struct pks_config *config)
{
	uint8_t bytes[PKS_CONFIG_SIZE_6_12];
	struct hcall_regs regs;
	int64_t code;

	memset(bytes, 0, sizeof(bytes));
	code = HCALL(&regs, H_PKS_GET_CONFIG, (uintptr_t)bytes, sizeof(bytes));
	pks_parse_config(bytes, config);
	return code;
}

uint32_t pks_used_space(void)
{
	struct pks_config config;

	return pks_get_config(&config) == H_SUCCESS ? config.usedspace : 0xffffffffu;
}

uint32_t pks_max_object_size(const struct pks_config *config)
{
	return config->maxobjsize;
}

uint32_t pks_greatest_object(const struct pks_config *config)
{
	return config->maxobjsize > config->maxlargeobjectsize ? config->maxobjsize :
								  config->maxlargeobjectsize;
}

void pks_label_set(struct pks_label *label, unsigned int consumer, const char *name)
{
	size_t size = strlen(name), at = 0;

	memset(label->bytes, 0, sizeof(label->bytes));
	if (consumer == PKS_CONSUMER_OS) {
		memcpy(label->bytes, "STUB", 4);
		label->bytes[9] = LINUX_OS;
		label->bytes[10] = PKS_LABEL_HEADER_SIZE;
		at = PKS_LABEL_HEADER_SIZE;
	}
	memcpy(label->bytes + at, name, size);
	label->size = at + size;
}

void pks_auth_fill(void *out, unsigned int consumer, const void *password, uint16_t size)
{
	uint8_t *bytes = out;

	memset(bytes, 0, PKS_AUTH_HEADER_SIZE);
	bytes[PKS_AUTH_VERSION] = 1;
	bytes[PKS_AUTH_CONSUMER] = (uint8_t)consumer;
	store_be16(bytes + PKS_AUTH_PASSWORD_SIZE, size);
	memcpy(bytes + PKS_AUTH_PASSWORD, password, size);
}

void *pks_auth(unsigned int consumer)
{
	void *out = auth_page[this_cpu->index];

	pks_auth_fill(out, consumer, passwords[consumer].bytes, passwords[consumer].size);
	return out;
}

bool pks_has_password(unsigned int consumer)
{
	return passwords[consumer].is_set;
}

const uint8_t *pks_password(unsigned int consumer, uint16_t *size)
{
	*size = passwords[consumer].size;
	return passwords[consumer].bytes;
}

void pks_keep_password(unsigned int consumer, const void *password, uint16_t size)
{
	if (size > MAX_PASSWORD)
		stub_abort("a password of %u bytes is more than this guest keeps", size);
	memcpy(passwords[consumer].bytes, password, size);
	passwords[consumer].size = size;
	passwords[consumer].is_set = true;
}

int64_t pks_gen_password(unsigned int consumer, void *out, uint64_t size)
{
	struct hcall_regs regs;

	return HCALL(&regs, H_PKS_GEN_PASSWORD, consumer, 0, (uintptr_t)out, size);
}

int64_t pks_set_password(unsigned int consumer, const void *password, uint64_t size)
{
	struct hcall_regs regs;

	return HCALL(&regs, H_PKS_SET_PASSWORD, consumer, 0, (uintptr_t)password, size);
}

int64_t pks_write(unsigned int consumer, const struct pks_label *label, uint32_t policy,
		  const void *data, uint64_t size)
{
	struct hcall_regs regs;

	return HCALL(&regs, H_PKS_WRITE_OBJECT, (uintptr_t)pks_auth(consumer),
		     (uintptr_t)label->bytes, label->size, policy, (uintptr_t)data, size);
}

struct pks_result pks_read(unsigned int consumer, const struct pks_label *label, void *out,
			   uint64_t size)
{
	struct hcall_regs regs;
	int64_t code = HCALL(&regs, H_PKS_READ_OBJECT, (uintptr_t)pks_auth(consumer),
			     (uintptr_t)label->bytes, label->size, (uintptr_t)out, size);

	return (struct pks_result){ code, regs.r[4], regs.r[5] };
}

int64_t pks_remove(unsigned int consumer, const struct pks_label *label)
{
	struct hcall_regs regs;

	return HCALL(&regs, H_PKS_REMOVE_OBJECT, (uintptr_t)pks_auth(consumer),
		     (uintptr_t)label->bytes, label->size);
}

struct pks_result pks_confirm(unsigned int consumer, const struct pks_label *label)
{
	struct hcall_regs regs;
	int64_t code = HCALL(&regs, H_PKS_CONFIRM_OBJECT_FLUSHED,
			     (uintptr_t)pks_auth(consumer), (uintptr_t)label->bytes,
			     label->size);

	return (struct pks_result){ code, regs.r[4], regs.r[5] };
}

struct pks_result pks_confirm_wait(unsigned int consumer, const struct pks_label *label)
{
	uint64_t start = timebase();
	struct pks_result result;

	for (;;) {
		result = pks_confirm(consumer, label);
		/* Linux looks at the low byte only. */
		if (result.code != H_SUCCESS || (result.r4 & 0xff) == 1 ||
		    timebase() - start > timebase_from_ms(PKS_FLUSH_TIMEOUT_MS))
			return result;
		delay_ms(PKS_FLUSH_POLL_MS);
	}
}

bool pks_is_busy(int64_t code)
{
	return code == H_BUSY || (code >= H_LONG_BUSY_ORDER_1_MSEC &&
				  code <= H_LONG_BUSY_ORDER_100_SEC);
}

uint64_t pks_busy_ms(int64_t code)
{
	uint64_t ms = 1;

	for (; code > H_LONG_BUSY_ORDER_1_MSEC; code--)
		ms *= 10;
	return ms;
}

int64_t pks_gen_key(unsigned int consumer, const struct pks_label *label, uint32_t policy,
		    void *out, uint64_t size)
{
	struct hcall_regs regs;

	return HCALL(&regs, H_PKS_GEN_KEY, (uintptr_t)pks_auth(consumer),
		     (uintptr_t)label->bytes, label->size, policy, (uintptr_t)out, size);
}

/* Issues a call until it is done; its token is argument number token. */
static struct pks_result issue(uint64_t number, uint64_t *args, unsigned int count,
			       unsigned int token, bool waits)
{
	struct hcall_regs regs;
	unsigned int issues;
	int64_t code;

	for (issues = 0; issues < PKS_MAX_ISSUES; issues++) {
		code = hcall_args(&regs, number, args, count);
		if (!pks_is_busy(code))
			return (struct pks_result){ code, regs.r[4], regs.r[5] };
		args[token] = regs.r[4];
		if (waits)
			delay_ms(pks_busy_ms(code));
	}
	stub_abort("%s is busy after %u issues", hcall_name(number), issues);
}

struct pks_result pks_wrap(unsigned int consumer, const struct pks_label *label, uint64_t flags,
			   const void *in, uint64_t in_size, void *out, uint64_t out_size)
{
	uint64_t args[] = { (uintptr_t)pks_auth(consumer), (uintptr_t)label->bytes, label->size,
			    flags, (uintptr_t)in, in_size, (uintptr_t)out, out_size, 0 };

	return issue(H_PKS_WRAP_OBJECT, args, 9, 8, false);
}

struct pks_result pks_unwrap(unsigned int consumer, const void *in, uint64_t in_size, void *out,
			     uint64_t out_size)
{
	uint64_t args[] = { (uintptr_t)pks_auth(consumer), 0, (uintptr_t)in, in_size,
			    (uintptr_t)out, out_size, 0 };

	return issue(H_PKS_UNWRAP_OBJECT, args, 7, 6, false);
}

struct pks_result pks_signed_update(unsigned int consumer, const struct pks_label *label,
				    uint32_t policy, uint64_t flags, const void *in,
				    uint64_t in_size)
{
	uint64_t args[] = { (uintptr_t)pks_auth(consumer), (uintptr_t)label->bytes, label->size,
			    policy, flags, (uintptr_t)in, in_size, 0 };

	return issue(H_PKS_SIGNED_UPDATE, args, 8, 7, true);
}
