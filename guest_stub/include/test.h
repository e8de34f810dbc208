/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writing a test. A file under tests/ defines a function and declares it:
 *
 *	static void test_thing(void)
 *	{
 *		report(1 + 1 == 2, "sums");
 *	}
 *	STUB_TEST("thing", test_thing, "self", true, "what it shows");
 */
#ifndef STUB_TEST_H
#define STUB_TEST_H

#include <stdbool.h>
#include <stdint.h>

struct stub_test {
	const char *name;
	void (*function)(void);
	const char *groups;	/* separated by spaces; each chooses all its tests */
	bool is_default;	/* run when no name is given */
	const char *doc;
};

#define STUB_TEST(test_name, test_function, test_groups, default_, text)	\
	static const struct stub_test stub_test_##test_function		\
	__attribute__((section(".stub_tests"), used, aligned(8))) = {		\
		.name = (test_name),					\
		.function = (test_function),				\
		.groups = (test_groups),				\
		.is_default = (default_),				\
		.doc = (text),						\
	}

extern const struct stub_test __tests_start[], __tests_end[];

/* EXIT: STATUS= */
enum exit_status {
	STATUS_PASSED = 0,
	STATUS_FAILED = 1,
	STATUS_EXCEPTION = 2,
	STATUS_USAGE = 3,
	STATUS_ALL_SKIPPED = 77,
};

/* One check: one KTAP line. Returns what it was given. From the boot CPU only. */
bool report(bool passed, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The check cannot be made here. With require=1 a skip counts as a failure. */
void report_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A diagnostic line: "# ...". From any CPU. */
void report_info(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A return code must be the expected one; both are told by name if it is not. */
bool report_code(int64_t got, int64_t expected, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* A number must be the expected one. */
bool report_equal(uint64_t got, uint64_t expected, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

void report_begin_test(const char *name);
enum test_result { TEST_PASSED, TEST_FAILED, TEST_SKIPPED };
enum test_result report_end_test(unsigned int number, const char *name);
unsigned int report_failures(void);

/* Bail out: the rest of the run makes no sense. */
void stub_exit(enum exit_status status) __attribute__((noreturn));
void stub_reboot(void) __attribute__((noreturn));
void stub_abort(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* key=value of the command line; NULL without one. */
const char *arg_text(const char *key);
uint64_t arg_number(const char *key, uint64_t otherwise);

#endif
