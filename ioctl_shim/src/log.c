/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the library says: nothing but errors, unless it is asked
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "shim.h"

#define LINE_SIZE 2048

/* One write for one line, so that lines of several threads do not mix */
static void PRINTF(1, 0) say(const char *format, va_list args)
{
    static const char prefix[] = "libhcalld-sev: ";
    int saved = errno;
    char line[LINE_SIZE];
    size_t used = sizeof(prefix) - 1;
    int more;

    memcpy(line, prefix, used);
    more = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    if (more > 0) {
        used += (size_t)more;
        if (used > sizeof(line) - 2) {
            used = sizeof(line) - 2;
        }
    }
    line[used++] = '\n';
    if (write(STDERR_FILENO, line, used) < 0) {
        /* There is nobody to tell */
    }
    errno = saved;
}

void shim_error(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    say(format, args);
    va_end(args);
}

bool shim_is_tracing(void)
{
    const char *value = secure_getenv("HCALLD_SEV_DEBUG");

    return value && *value && strcmp(value, "0") != 0;
}

void shim_trace(const char *format, ...)
{
    va_list args;

    if (!shim_is_tracing()) {
        return;
    }
    va_start(args, format);
    say(format, args);
    va_end(args);
}

void shim_quote(char *out, size_t size, const uint8_t *text, size_t length)
{
    size_t used = 0, i;

    for (i = 0; i < length && used + 5 < size; i++) {
        if (text[i] < 0x20 || text[i] >= 0x7f) {
            used += (size_t)snprintf(out + used, size - used, "\\x%02x",
                                     text[i]);
        } else {
            out[used++] = (char)text[i];
        }
    }
    out[used] = 0;
}
