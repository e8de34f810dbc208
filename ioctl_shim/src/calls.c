/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The table of commands
 */

#include <stddef.h>
#include "sev_call.h"

const struct sev_call sev_calls[SEV_CALL_COUNT] = { SEV_CALL_TABLE };

const struct sev_call *sev_call_find(uint64_t number)
{
    unsigned i;

    for (i = 0; i < SEV_CALL_COUNT; i++) {
        if (sev_calls[i].number == number) {
            return &sev_calls[i];
        }
    }
    return NULL;
}

const char *sev_status_name(int64_t status)
{
    switch (status) {
#define STATUS_CASE(name, value) case value: return #name;
    SEV_STATUS_NAMES(STATUS_CASE)
#undef STATUS_CASE
    default:
        return NULL;
    }
}
