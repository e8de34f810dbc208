/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Memory and strings, as C has them, and numbers in a fixed byte order. */
#ifndef STUB_STRING_H
#define STUB_STRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t size);
char *strchr(const char *text, int c);

/* True when all size bytes at p have this value. */
bool memory_is(const void *p, int byte, size_t size);

/* Decimal or 0x...; false when the text is not a number as a whole. */
bool parse_number(const char *text, uint64_t *value);

/* Any alignment; big-endian is the order of every structure of the hypervisor. */
uint16_t load_be16(const void *p);
uint32_t load_be32(const void *p);
uint64_t load_be64(const void *p);
void store_be16(void *p, uint16_t value);
void store_be32(void *p, uint32_t value);
void store_be64(void *p, uint64_t value);

static inline uint32_t be32(uint32_t value)
{
#ifdef __LITTLE_ENDIAN__
	return __builtin_bswap32(value);
#else
	return value;
#endif
}

static inline uint64_t be64(uint64_t value)
{
#ifdef __LITTLE_ENDIAN__
	return __builtin_bswap64(value);
#else
	return value;
#endif
}

#endif
