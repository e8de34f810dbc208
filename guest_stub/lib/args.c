// SPDX-License-Identifier: GPL-2.0-or-later
/* The command line. */
#include "args.h"

#include <stddef.h>

#include "platform.h"
#include "string.h"
#include "test.h"

#define MAX_WORDS	64

static char buffer[BOOTARGS_SIZE];
static const char *words[MAX_WORDS];
static const char *options[MAX_WORDS];
static unsigned int word_count, option_count;

void args_parse(const char *text)
{
	char *p = buffer;
	size_t size = strlen(text);

	if (size >= sizeof(buffer))
		size = sizeof(buffer) - 1;
	memcpy(buffer, text, size);
	buffer[size] = '\0';
	word_count = option_count = 0;
	while (*p) {
		char *word = p;

		while (*p && *p != ' ')
			p++;
		if (*p)
			*p++ = '\0';
		if (!*word)
			continue;
		if (strchr(word, '=')) {
			if (option_count < MAX_WORDS)
				options[option_count++] = word;
		} else if (word_count < MAX_WORDS) {
			words[word_count++] = word;
		}
	}
}

unsigned int args_count(void)
{
	return word_count;
}

const char *args_word(unsigned int n)
{
	return words[n];
}

const char *arg_text(const char *key)
{
	size_t size = strlen(key);
	unsigned int n;

	for (n = 0; n < option_count; n++) {
		if (!strncmp(options[n], key, size) && options[n][size] == '=')
			return options[n] + size + 1;
	}
	return NULL;
}

uint64_t arg_number(const char *key, uint64_t otherwise)
{
	const char *text = arg_text(key);
	uint64_t value;

	if (!text)
		return otherwise;
	if (!parse_number(text, &value))
		stub_abort("%s=%s is not a number", key, text);
	return value;
}
