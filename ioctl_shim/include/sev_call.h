/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is known of a command: the type of sev_table.h's rows
 */
#ifndef SEV_CALL_H
#define SEV_CALL_H

#include <stdint.h>
#include "sev_table.h"

enum {
    SEV_FIELD_IN        = 1,        /* sent as a register */
    SEV_FIELD_OUT       = 2,        /* may come back */
    SEV_FIELD_POINTER   = 4,        /* no field: where the structure would be */
};

#define SEV_SIZE_FIXED      0xff    /* in place of the size's field */

/* The bytes of the structure that register 4 + index stands for */
struct sev_field {
    uint8_t offset;
    uint8_t size;
    uint8_t flags;
    uint8_t also;                   /* comes back with this status too, or 0 */
};

/* Memory that a command reads or writes, seen from the daemon */
struct sev_buffer {
    uint8_t address;                /* index of the field */
    uint8_t size;                   /* index of the field, or SEV_SIZE_FIXED */
    uint8_t direction;              /* HCLP_DIRECTION_IN, _OUT or both */
    uint32_t fixed_size;
};

struct sev_call {
    uint32_t number;
    const char *name;
    uint16_t structure_size;        /* 0: it has none */
    uint8_t block;                  /* buffers are rounded out to these */
    uint8_t field_count;
    struct sev_field fields[SEV_MAX_FIELDS];
    uint8_t buffer_count;
    struct sev_buffer buffers[HCLP_MAX_BUFFERS];
};

extern const struct sev_call sev_calls[SEV_CALL_COUNT];

const struct sev_call *sev_call_find(uint64_t number);

/* "SEV_RET_INVALID_LEN", "EINVAL", or NULL */
const char *sev_status_name(int64_t status);

#endif
