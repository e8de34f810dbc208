// SPDX-License-Identifier: GPL-2.0-or-later
/* Checks as KTAP (Linux Documentation/dev-tools/ktap.rst), and the end of the run. */
#include "test.h"

#include "console.h"
#include "hcall.h"
#include "rtas.h"
#include "smp.h"

#define TEXT_SIZE	256

static struct {
	unsigned int checks, failures, skips;
} now;

static unsigned int failed_tests;
static unsigned int abandoned;

static bool skips_are_failures(void)
{
	return arg_number("require", 0) != 0;
}

static bool check(bool passed, const char *text)
{
	now.checks++;
	now.failures += !passed;
	console_printf("  %s %u %s\n", passed ? "ok" : "not ok", now.checks, text);
	return passed;
}

bool report(bool passed, const char *format, ...)
{
	char text[TEXT_SIZE];
	va_list args;

	va_start(args, format);
	format_textv(text, sizeof(text), format, args);
	va_end(args);
	return check(passed, text);
}

void report_skip(const char *format, ...)
{
	char text[TEXT_SIZE];
	va_list args;

	va_start(args, format);
	format_textv(text, sizeof(text), format, args);
	va_end(args);
	if (skips_are_failures()) {
		check(false, text);
		console_printf("  # this check is required and cannot be made here\n");
		return;
	}
	now.checks++;
	now.skips++;
	console_printf("  ok %u %s # SKIP\n", now.checks, text);
}

void report_info(const char *format, ...)
{
	char text[TEXT_SIZE];
	va_list args;

	va_start(args, format);
	format_textv(text, sizeof(text), format, args);
	va_end(args);
	console_printf("  # %s\n", text);
}

bool report_code(int64_t got, int64_t expected, const char *format, ...)
{
	const char *got_name = hcall_code_name(got);
	const char *expected_name = hcall_code_name(expected);
	char text[TEXT_SIZE];
	va_list args;

	va_start(args, format);
	format_textv(text, sizeof(text), format, args);
	va_end(args);
	if (!check(got == expected, text))
		console_printf("  # got %s (%ld), expected %s (%ld)\n",
			       got_name ? got_name : "a code without a name", (long)got,
			       expected_name ? expected_name : "a code without a name",
			       (long)expected);
	return got == expected;
}

bool report_equal(uint64_t got, uint64_t expected, const char *format, ...)
{
	char text[TEXT_SIZE];
	va_list args;

	va_start(args, format);
	format_textv(text, sizeof(text), format, args);
	va_end(args);
	if (!check(got == expected, text))
		console_printf("  # got %lu (0x%lx), expected %lu (0x%lx)\n", got, got,
			       expected, expected);
	return got == expected;
}

void report_begin_test(const char *name)
{
	now.checks = now.failures = now.skips = 0;
	console_printf("  KTAP version 1\n  # Subtest: %s\n", name);
}

enum test_result report_end_test(unsigned int number, const char *name)
{
	enum test_result result = TEST_PASSED;

	if (!now.checks) {
		report(false, "made no check");
	}
	if (now.failures)
		result = TEST_FAILED;
	else if (now.skips == now.checks)
		result = TEST_SKIPPED;
	failed_tests += result == TEST_FAILED;
	console_printf("  # pass:%u fail:%u skip:%u\n",
		       now.checks - now.failures - now.skips, now.failures, now.skips);
	console_printf("%s %u %s%s\n", result == TEST_FAILED ? "not ok" : "ok", number, name,
		       result == TEST_SKIPPED ? " # SKIP" : "");
	return result;
}

unsigned int report_failures(void)
{
	return failed_tests;
}

void stub_exit(enum exit_status status)
{
	char message[64];

	/* One CPU ends the run; another that fails meanwhile waits for it. */
	if (__atomic_exchange_n(&abandoned, 1, __ATOMIC_SEQ_CST)) {
		for (;;)
			cpu_relax();
	}
	console_printf("EXIT: STATUS=%d\n", (int)status);
	if (status == STATUS_PASSED || status == STATUS_ALL_SKIPPED)
		rtas_power_off();
	format_text(message, sizeof(message), "guest_stub: EXIT: STATUS=%d", (int)status);
	rtas_os_term(message);
}

void stub_reboot(void)
{
	console_printf("# rebooting\n");
	rtas_reboot();
}

void stub_abort(const char *format, ...)
{
	char text[TEXT_SIZE];
	va_list args;

	va_start(args, format);
	format_textv(text, sizeof(text), format, args);
	va_end(args);
	console_printf("Bail out! %s\n", text);
	stub_exit(STATUS_FAILED);
}
