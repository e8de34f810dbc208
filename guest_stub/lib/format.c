// SPDX-License-Identifier: GPL-2.0-or-later
/* printf without floating point. */
#include "console.h"

#include <stdbool.h>

#include "string.h"

struct output {
	char *out;
	size_t size;
	size_t used;
};

static void put(struct output *o, char c)
{
	if (o->used + 1 < o->size)
		o->out[o->used++] = c;
}

static void put_padded(struct output *o, const char *text, size_t size, size_t width,
		       bool left, char pad)
{
	size_t fill = width > size ? width - size : 0;

	if (!left) {
		while (fill--)
			put(o, pad);
	}
	while (size--)
		put(o, *text++);
	if (left) {
		while (fill--)
			put(o, ' ');
	}
}

static void put_number(struct output *o, uint64_t value, unsigned int base, bool negative,
		       size_t width, bool left, bool zero)
{
	char digits[24];
	size_t at = sizeof(digits);

	do {
		digits[--at] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	if (negative && zero) {
		put(o, '-');
		width = width ? width - 1 : 0;
	} else if (negative) {
		digits[--at] = '-';
	}
	put_padded(o, digits + at, sizeof(digits) - at, width, left, zero ? '0' : ' ');
}

int format_textv(char *out, size_t size, const char *format, va_list args)
{
	struct output o = { .out = out, .size = size };

	for (; *format; format++) {
		bool left = false, zero = false, is_long = false;
		size_t width = 0;

		if (*format != '%') {
			put(&o, *format);
			continue;
		}
		for (format++; *format == '-' || *format == '0'; format++) {
			left |= *format == '-';
			zero |= *format == '0';
		}
		for (; *format >= '0' && *format <= '9'; format++)
			width = width * 10 + (size_t)(*format - '0');
		for (; *format == 'l' || *format == 'z'; format++)
			is_long = true;

		switch (*format) {
		case 'd': {
			int64_t value = is_long ? va_arg(args, long) : va_arg(args, int);
			uint64_t magnitude = value < 0 ? -(uint64_t)value : (uint64_t)value;

			put_number(&o, magnitude, 10, value < 0, width, left, zero);
			break;
		}
		case 'u':
		case 'x': {
			uint64_t value = is_long ? va_arg(args, unsigned long) :
						   va_arg(args, unsigned int);

			put_number(&o, value, *format == 'x' ? 16 : 10, false, width, left,
				   zero);
			break;
		}
		case 'p':
			put(&o, '0');
			put(&o, 'x');
			put_number(&o, (uintptr_t)va_arg(args, void *), 16, false, 0, false,
				   false);
			break;
		case 's': {
			const char *text = va_arg(args, const char *);

			if (!text)
				text = "(null)";
			put_padded(&o, text, strlen(text), width, left, ' ');
			break;
		}
		case 'c':
			put(&o, (char)va_arg(args, int));
			break;
		case '%':
			put(&o, '%');
			break;
		default:
			put(&o, '%');
			put(&o, '?');
			if (!*format)
				format--;
			break;
		}
	}
	if (size)
		out[o.used] = '\0';
	return (int)o.used;
}

int format_text(char *out, size_t size, const char *format, ...)
{
	va_list args;
	int used;

	va_start(args, format);
	used = format_textv(out, size, format, args);
	va_end(args);
	return used;
}
