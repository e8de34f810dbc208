// SPDX-License-Identifier: GPL-2.0-or-later
/* Choosing the tests, running them, and ending. */
#include "args.h"
#include "console.h"
#include "esm.h"
#include "exception.h"
#include "platform.h"
#include "smp.h"
#include "string.h"
#include "test.h"

/* start.S */
void stub_main(uint64_t of_entry, uint64_t tree, uint64_t kernel);

static const char *byte_order(void)
{
	const uint16_t one = 1;

	return *(const uint8_t *)&one ? "little" : "big";
}

static bool in_group(const struct stub_test *test, const char *group)
{
	size_t size = strlen(group);
	const char *p = test->groups;

	while (*p) {
		if (!strncmp(p, group, size) && (p[size] == ' ' || !p[size]))
			return true;
		while (*p && *p != ' ')
			p++;
		while (*p == ' ')
			p++;
	}
	return false;
}

static bool word_chooses(const char *word, const struct stub_test *test)
{
	return !strcmp(word, test->name) || in_group(test, word);
}

static bool is_chosen(const struct stub_test *test)
{
	unsigned int n;

	if (!args_count())
		return test->is_default;
	for (n = 0; n < args_count(); n++) {
		if (word_chooses(args_word(n), test))
			return true;
	}
	return false;
}

static void refuse_unknown_words(void)
{
	const struct stub_test *test;
	unsigned int n;

	for (n = 0; n < args_count(); n++) {
		bool known = false;

		for (test = __tests_start; test < __tests_end; test++)
			known |= word_chooses(args_word(n), test);
		if (known)
			continue;
		console_printf("Bail out! no test or group is called '%s'; there are:\n",
			       args_word(n));
		for (test = __tests_start; test < __tests_end; test++)
			console_printf("# %-14s %s%s [%s]\n", test->name, test->doc,
				       test->is_default ? "" : " (not by default)",
				       test->groups);
		stub_exit(STATUS_USAGE);
	}
}

/* From UV_ESM there is no Open Firmware, but a device tree, and we are at kernel. */
static void prepare(uint64_t of_entry, uint64_t tree, uint64_t kernel)
{
	smp_init();
	if (!of_entry) {
		esm_resume(tree, kernel);
		exception_init();
		return;
	}
	platform_init(of_entry);
	exception_init();
	if (arg_number("esm", 0))
		esm_enter_or_abort();
}

void stub_main(uint64_t of_entry, uint64_t tree, uint64_t kernel)
{
	const struct stub_test *test;
	unsigned int count = 0, number = 0, skipped = 0;

	prepare(of_entry, tree, kernel);

	console_printf("\nKTAP version 1\n");
	console_printf("# guest_stub %s-endian, cpus=%u ram=%lu MiB%s args='%s'\n",
		       byte_order(), platform.cpu_count, platform.ram_end >> 20,
		       platform.is_secure ? " secure" : "", platform.bootargs);
	refuse_unknown_words();
	for (test = __tests_start; test < __tests_end; test++)
		count += is_chosen(test);
	console_printf("1..%u\n", count);
	for (test = __tests_start; test < __tests_end; test++) {
		if (!is_chosen(test))
			continue;
		number++;
		report_begin_test(test->name);
		test->function();
		skipped += report_end_test(number, test->name) == TEST_SKIPPED;
	}
	console_printf("# tests:%u fail:%u skip:%u\n", count, report_failures(), skipped);
	if (report_failures())
		stub_exit(STATUS_FAILED);
	stub_exit(count && skipped == count ? STATUS_ALL_SKIPPED : STATUS_PASSED);
}
