/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the library says: nothing but errors, unless it is asked
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "shim.h"

#define LINE_SIZE 2048

/*
 * Whoever makes errors as fast as he can, such as a daemon that asks for what
 * it may not have, is not to fill a disk: so many lines in so many seconds.
 */
#define BURST       100u
#define INTERVAL    5

static unsigned count_line(void)
{
    static atomic_long since;
    static atomic_uint lines;
    struct timespec now;
    long began = atomic_load(&since);

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec - began >= INTERVAL &&
        atomic_compare_exchange_strong(&since, &began, now.tv_sec)) {
        atomic_store(&lines, 0);
    }
    return atomic_fetch_add(&lines, 1);
}

/* One write for one line, so that lines of several threads do not mix */
static void PRINTF(1, 0) say(const char *format, va_list args)
{
    static const char prefix[] = "libhcalld-sev: ";
    int saved = errno, state;
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
    /* A thread may be cancelled in write(), but has a lock here */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    if (write(STDERR_FILENO, line, used) < 0) {
        /* There is nobody to tell */
    }
    pthread_setcancelstate(state, NULL);
    errno = saved;
}

void shim_error(const char *format, ...)
{
    unsigned before = count_line();
    va_list args;

    if (before > BURST) {
        return;
    }
    va_start(args, format);
    say(before < BURST ? format : "more errors are not said for a while",
        args);
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
