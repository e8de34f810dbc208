// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A Linux program without a C library: prints a file of a secure guest's blob.
 *
 *   esmb-get-file [-f] NAME
 *
 * Source: open-power/svm-tools, svm-password-agent. The file comes by UV_ESMB_GET_FILE
 * from problem state, 64 bytes at a time, and can be read once, by one process.
 */
#include <stdbool.h>

#include "hcall_numbers.h"

#define SYS_exit_group	234
#define SYS_write	4

#define NAME_SIZE	64
#define FILE_REGISTERS	8

typedef unsigned char u8;
typedef unsigned long u64;

static long syscall3(long number, long a, long b, long c)
{
	register long r0 asm("r0") = number;
	register long r3 asm("r3") = a;
	register long r4 asm("r4") = b;
	register long r5 asm("r5") = c;

	asm volatile("sc\n\tbns+ 1f\n\tneg %1,%1\n1:"
		     : "+r"(r0), "+r"(r3), "+r"(r4), "+r"(r5)
		     :
		     : "r6", "r7", "r8", "r9", "r10", "r11", "r12", "ctr", "xer", "cr0", "memory");
	return r3;
}

static void __attribute__((noreturn)) leave(int status)
{
	for (;;)
		syscall3(SYS_exit_group, status, 0, 0);
}

static bool print(int fd, const u8 *text, u64 size)
{
	while (size) {
		long done = syscall3(SYS_write, fd, (long)text, (long)size);

		if (done <= 0)
			return false;
		text += done;
		size -= (u64)done;
	}
	return true;
}

static u64 length(const char *text)
{
	u64 size = 0;

	while (text[size])
		size++;
	return size;
}

static void complain(const char *text)
{
	print(2, (const u8 *)text, length(text));
}

static void complain_code(long code)
{
	char digits[24];
	unsigned int at = sizeof(digits);
	u64 rest = code < 0 ? -(u64)code : (u64)code;

	digits[--at] = '\0';
	digits[--at] = '\n';
	do {
		digits[--at] = (char)('0' + rest % 10);
		rest /= 10;
	} while (rest);
	if (code < 0)
		digits[--at] = '-';
	complain("esmb-get-file: UV_ESMB_GET_FILE: ");
	complain(&digits[at]);
}

/* The next bytes from offset on, and how many: at most 64. Negative: refused. */
static long get(u64 offset, const u64 *name, u64 *data)
{
	register u64 r3 asm("r3") = UV_ESMB_GET_FILE;
	register u64 r4 asm("r4") = offset;
	register u64 r5 asm("r5") = name[0];
	register u64 r6 asm("r6") = name[1];
	register u64 r7 asm("r7") = name[2];
	register u64 r8 asm("r8") = name[3];
	register u64 r9 asm("r9") = name[4];
	register u64 r10 asm("r10") = name[5];
	register u64 r11 asm("r11") = name[6];
	register u64 r12 asm("r12") = name[7];

	/* sc 2, which an assembler may not know */
	asm volatile(".long 0x44000042"
		     : "+r"(r3), "+r"(r4), "+r"(r5), "+r"(r6), "+r"(r7), "+r"(r8),
		       "+r"(r9), "+r"(r10), "+r"(r11), "+r"(r12)
		     :
		     : "r0", "ctr", "xer", "cr0", "memory");
	data[0] = r4;
	data[1] = r5;
	data[2] = r6;
	data[3] = r7;
	data[4] = r8;
	data[5] = r9;
	data[6] = r10;
	data[7] = r11;
	return (long)r3;
}

static bool pack(const char *text, u64 *name)
{
	u64 size = length(text);

	if (!size || size > NAME_SIZE)
		return false;
	for (u64 i = 0; i < FILE_REGISTERS; i++) {
		name[i] = 0;
		for (u64 n = 8 * i; n < 8 * i + 8; n++)
			name[i] = name[i] << 8 | (n < size ? (u8)text[n] : 0);
	}
	return true;
}

static int print_file(const char *text)
{
	u64 name[FILE_REGISTERS], data[FILE_REGISTERS];
	u64 offset = 0;

	if (!pack(text, name)) {
		complain("esmb-get-file: the name has 1 to 64 bytes\n");
		return 2;
	}
	for (;;) {
		u8 bytes[8 * FILE_REGISTERS];
		long size = get(offset, name, data);

		if (size < 0 || size > (long)sizeof(bytes)) {
			complain_code(size);
			return 1;
		}
		if (!size)
			return 0;
		for (u64 n = 0; n < sizeof(bytes); n++)
			bytes[n] = (u8)(data[n / 8] >> (56 - 8 * (n % 8)));
		if (!print(1, bytes, (u64)size))
			return 1;
		offset += (u64)size;
	}
}

void __attribute__((noreturn)) start_c(const u64 *stack);

/* The stack as Linux leaves it: the count of words, then the words. */
void start_c(const u64 *stack)
{
	u64 count = stack[0];
	const char *const *words = (const char *const *)(stack + 1);

	if (count == 3 && length(words[1]) == 2 && words[1][0] == '-' && words[1][1] == 'f')
		leave(print_file(words[2]));
	if (count == 2)
		leave(print_file(words[1]));
	complain("usage: esmb-get-file [-f] NAME\n");
	leave(2);
}
