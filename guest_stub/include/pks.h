/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The Platform KeyStore from a guest's side: its structures, and one function for each
 * call. Passwords that this boot has set are kept here and used for every later call.
 */
#ifndef STUB_PKS_H
#define STUB_PKS_H

#include <stdbool.h>
#include <stdint.h>

#include "hcall.h"
#include "platform.h"

/* Linux 7.2 arch/powerpc/platforms/pseries/plpks.c struct config, in host order. */
struct pks_config {
	uint8_t version;
	uint8_t flags;
	uint16_t reserved;
	uint16_t objoverhead;
	uint16_t maxpwsize;
	uint16_t maxobjlabelsize;
	uint16_t maxobjsize;
	uint32_t totalsize;
	uint32_t usedspace;
	uint32_t supportedpolicies;
	uint32_t maxlargeobjectsize;
	uint64_t signedupdatealgorithms;
	uint64_t wrappingfeatures;
};

#define PKS_CONFIG_KNOWN_SIZE	44	/* what the fields above take */
#define PKS_CONFIG_SIZE_6_12	512	/* what Linux 6.12 passes */
#define PKS_CONFIG_SIZE_7_2	520

#define PKS_CONSUMERS		3	/* numbered from 1 */
#define PKS_MIN_PASSWORD_SIZE	32
#define PKS_MAX_LABEL_SIZE	255
#define PKS_LABEL_HEADER_SIZE	16
#define PKS_FLUSH_TIMEOUT_MS	5000	/* Linux gives up after that */
#define PKS_FLUSH_POLL_MS	10

/* The authorization structure's fields, by offset. */
#define PKS_AUTH_VERSION	0
#define PKS_AUTH_CONSUMER	1
#define PKS_AUTH_RESERVED	2
#define PKS_AUTH_RESERVED_SIZE	12
#define PKS_AUTH_PASSWORD_SIZE	14
#define PKS_AUTH_PASSWORD	16

struct pks_label {
	uint8_t bytes[512] __attribute__((aligned(512)));	/* never crosses a page */
	uint64_t size;
};

/* Buffers of more than an object, for tests; from the boot CPU only. */
#define PKS_BUFFER_SIZE		(1u << 17)
extern uint8_t pks_data[PKS_BUFFER_SIZE], pks_out[PKS_BUFFER_SIZE];

/* True when the device tree announces the keystore; else skips the test. */
bool pks_announced(void);

/*
 * pks_announced(), and the keystore answers, and each consumer has a password of ours.
 * What fails is reported.
 */
bool pks_open(void);
bool pks_open_consumer(unsigned int consumer);

int64_t pks_get_config(struct pks_config *config);
void pks_parse_config(const uint8_t *bytes, struct pks_config *config);
uint32_t pks_used_space(void);

/* Bytes that an object of this size may have, whatever form the limit has. */
uint32_t pks_max_object_size(const struct pks_config *config);

/* The same with maxlargeobjectsize, which counts from 64 KiB on. */
uint32_t pks_greatest_object(const struct pks_config *config);

/* "STUB", version 0, Linux, then the name; for consumers 1 and 2 the bare name. */
void pks_label_set(struct pks_label *label, unsigned int consumer, const char *name);

/* Structure at out, 16-byte aligned, with any password. */
void pks_auth_fill(void *out, unsigned int consumer, const void *password, uint16_t size);

/* This CPU's structure for the consumer, with the password that we hold. */
void *pks_auth(unsigned int consumer);

bool pks_has_password(unsigned int consumer);
const uint8_t *pks_password(unsigned int consumer, uint16_t *size);
void pks_keep_password(unsigned int consumer, const void *password, uint16_t size);

int64_t pks_gen_password(unsigned int consumer, void *out, uint64_t size);
int64_t pks_set_password(unsigned int consumer, const void *password, uint64_t size);

struct pks_result {
	int64_t code;
	uint64_t r4, r5;
};

int64_t pks_write(unsigned int consumer, const struct pks_label *label, uint32_t policy,
		  const void *data, uint64_t size);
struct pks_result pks_read(unsigned int consumer, const struct pks_label *label, void *out,
			   uint64_t size);
int64_t pks_remove(unsigned int consumer, const struct pks_label *label);
struct pks_result pks_confirm(unsigned int consumer, const struct pks_label *label);

/* What makes a caller issue H_PKS_SIGNED_UPDATE, WRAP or UNWRAP again, with r4 as token. */
bool pks_is_busy(int64_t code);

/* The milliseconds that a busy code hints at; 1 for H_BUSY, as Linux takes it. */
uint64_t pks_busy_ms(int64_t code);

/* Without WRAPPINGKEY the key is written to out. */
int64_t pks_gen_key(unsigned int consumer, const struct pks_label *label, uint32_t policy,
		    void *out, uint64_t size);

/*
 * These follow busy answers to the end, as Linux does: WRAP and UNWRAP at once, a signed
 * update after the time that the code hints at. The result is the final one; r5 is the
 * size of what was written.
 */
struct pks_result pks_wrap(unsigned int consumer, const struct pks_label *label, uint64_t flags,
			   const void *in, uint64_t in_size, void *out, uint64_t out_size);
struct pks_result pks_unwrap(unsigned int consumer, const void *in, uint64_t in_size, void *out,
			     uint64_t out_size);
struct pks_result pks_signed_update(unsigned int consumer, const struct pks_label *label,
				    uint32_t policy, uint64_t flags, const void *in,
				    uint64_t in_size);

/* A signed variable's label: no prefix, and its name in UTF-16LE without terminator. */
void pks_variable_label(struct pks_label *label, const void *name, uint64_t size);

/* An update of db that is well-formed, and signed by nobody. */
#define PKS_MESSAGE_SIZE	457
void pks_message_fill(uint8_t *at);

/* Linux's flags for a wrapped object without a condition. */
#define PKS_WRAP_DEFAULT	(PKS_WRAP_FLAG_PASSWORD | PKS_WRAP_FLAG_AES_GCM_256)
#define PKS_MAX_ISSUES		10000	/* of one operation: then it counts as endless */

/* As Linux does: again every 10 ms until r4 is 1, any code but 0 came, or 5 s passed. */
struct pks_result pks_confirm_wait(unsigned int consumer, const struct pks_label *label);

#endif
