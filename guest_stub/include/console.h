/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The console: one call of console_printf() is one uninterrupted piece of output. */
#ifndef STUB_CONSOLE_H
#define STUB_CONSOLE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#define CONSOLE_LINE_SIZE	512

/* Unit address of the virtual terminal; 0, the initial value, means the first one. */
void console_set_terminal(uint64_t unit);

void console_write(const char *text, size_t size);

/* For an exception handler: waits for the lock only for a while. */
void console_set_panic(void);

/*
 * Knows %s %c %d %u %x %p %% with l, ll and z, a width, 0 and -. Output beyond
 * CONSOLE_LINE_SIZE is cut off.
 */
void console_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
void console_vprintf(const char *format, va_list args);

int format_text(char *out, size_t size, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
int format_textv(char *out, size_t size, const char *format, va_list args);

#endif
