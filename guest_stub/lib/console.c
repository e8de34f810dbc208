// SPDX-License-Identifier: GPL-2.0-or-later
/* The console by H_PUT_TERM_CHAR (LoPAR 16.6.2.3): 16 characters in two registers. */
#include "console.h"

#include <stdbool.h>

#include "hcall.h"
#include "smp.h"
#include "string.h"

static struct spinlock console_lock;
static uint64_t terminal;
static bool panic;

void console_set_terminal(uint64_t unit)
{
	terminal = unit;
}

void console_set_panic(void)
{
	panic = true;
}

static void put_chars(const char *text, size_t size)
{
	while (size) {
		size_t chunk = size < 16 ? size : 16;
		struct hcall_regs regs;
		uint8_t bytes[16] = { 0 };
		int64_t status;

		memcpy(bytes, text, chunk);
		do {
			status = HCALL(&regs, H_PUT_TERM_CHAR, terminal, chunk,
				       load_be64(bytes), load_be64(bytes + 8));
		} while (status == H_BUSY);
		text += chunk;
		size -= chunk;
	}
}

void console_write(const char *text, size_t size)
{
	bool locked = true;

	if (panic) {
		/* The holder may be the CPU that failed, or wait for a call for ever. */
		unsigned int tries = 1000000;

		while (!(locked = spin_trylock(&console_lock)) && --tries)
			cpu_relax();
	} else {
		spin_lock(&console_lock);
	}
	put_chars(text, size);
	if (locked)
		spin_unlock(&console_lock);
}

void console_vprintf(const char *format, va_list args)
{
	char line[CONSOLE_LINE_SIZE];
	int size = format_textv(line, sizeof(line), format, args);

	console_write(line, (size_t)size);
}

void console_printf(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	console_vprintf(format, args);
	va_end(args);
}
