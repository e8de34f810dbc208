/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command line: words separated by spaces. key=value sets an option, any other
 * word chooses the test or the group of tests of that name. The tests' side is test.h.
 */
#ifndef STUB_ARGS_H
#define STUB_ARGS_H

void args_parse(const char *text);

unsigned int args_count(void);		/* words that choose tests */
const char *args_word(unsigned int n);

#endif
