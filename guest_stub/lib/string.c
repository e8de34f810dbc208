// SPDX-License-Identifier: GPL-2.0-or-later
/* Memory and strings. Built without turning the loops below into calls of themselves. */
#include "string.h"

void *memcpy(void *to, const void *from, size_t size)
{
	uint8_t *out = to;
	const uint8_t *in = from;

	if (!(((uintptr_t)out | (uintptr_t)in) & 7)) {
		for (; size >= 8; size -= 8, out += 8, in += 8)
			*(uint64_t *)out = *(const uint64_t *)in;
	}
	while (size--)
		*out++ = *in++;
	return to;
}

void *memmove(void *to, const void *from, size_t size)
{
	uint8_t *out = to;
	const uint8_t *in = from;

	if (out <= in || out >= in + size)
		return memcpy(to, from, size);
	while (size--)
		out[size] = in[size];
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	uint8_t *out = to;
	uint64_t word = 0x0101010101010101ull * (uint8_t)byte;

	if (!((uintptr_t)out & 7)) {
		for (; size >= 8; size -= 8, out += 8)
			*(uint64_t *)out = word;
	}
	while (size--)
		*out++ = (uint8_t)byte;
	return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
	const uint8_t *x = a, *y = b;

	for (; size; size--, x++, y++) {
		if (*x != *y)
			return *x - *y;
	}
	return 0;
}

size_t strlen(const char *text)
{
	size_t size = 0;

	while (text[size])
		size++;
	return size;
}

int strcmp(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return (uint8_t)*a - (uint8_t)*b;
}

int strncmp(const char *a, const char *b, size_t size)
{
	for (; size; size--, a++, b++) {
		if (*a != *b || !*a)
			return (uint8_t)*a - (uint8_t)*b;
	}
	return 0;
}

char *strchr(const char *text, int c)
{
	for (; *text; text++) {
		if (*text == (char)c)
			return (char *)text;
	}
	return NULL;
}

bool memory_is(const void *p, int byte, size_t size)
{
	const uint8_t *in = p;

	for (; size; size--, in++) {
		if (*in != (uint8_t)byte)
			return false;
	}
	return true;
}

bool parse_number(const char *text, uint64_t *value)
{
	unsigned int base = 10;
	uint64_t result = 0;

	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
		base = 16;
		text += 2;
	}
	if (!*text)
		return false;
	for (; *text; text++) {
		unsigned int digit;

		if (*text >= '0' && *text <= '9')
			digit = *text - '0';
		else if (*text >= 'a' && *text <= 'f')
			digit = *text - 'a' + 10;
		else if (*text >= 'A' && *text <= 'F')
			digit = *text - 'A' + 10;
		else
			return false;
		if (digit >= base || result > (~0ull - digit) / base)
			return false;
		result = result * base + digit;
	}
	*value = result;
	return true;
}

static uint64_t load_be(const uint8_t *p, unsigned int size)
{
	uint64_t value = 0;

	while (size--)
		value = value << 8 | *p++;
	return value;
}

static void store_be(uint8_t *p, uint64_t value, unsigned int size)
{
	while (size--) {
		p[size] = (uint8_t)value;
		value >>= 8;
	}
}

uint16_t load_be16(const void *p)
{
	return (uint16_t)load_be(p, 2);
}

uint32_t load_be32(const void *p)
{
	return (uint32_t)load_be(p, 4);
}

uint64_t load_be64(const void *p)
{
	return load_be(p, 8);
}

void store_be16(void *p, uint16_t value)
{
	store_be(p, value, 2);
}

void store_be32(void *p, uint32_t value)
{
	store_be(p, value, 4);
}

void store_be64(void *p, uint64_t value)
{
	store_be(p, value, 8);
}
