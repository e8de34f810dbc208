/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command line: words separated by spaces. key=value sets an option, group:NAME
 * chooses a group of tests, any other word a test. The tests' side is in test.h.
 */
#ifndef STUB_ARGS_H
#define STUB_ARGS_H

void args_parse(const char *text);

unsigned int args_count(void);		/* words that choose tests */
const char *args_word(unsigned int n);

#endif
