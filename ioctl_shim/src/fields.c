/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A command's structure in the program's memory, and its fields as registers
 */

#include <string.h>
#include "shim.h"

uint64_t load_le(const uint8_t *bytes, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, bytes, size);    /* little-endian, as the structures are */
    return value;
}

static bool has_field(const struct sev_call *call, unsigned flag)
{
    unsigned i;

    for (i = 0; i < call->field_count; i++) {
        if (call->fields[i].flags & flag) {
            return true;
        }
    }
    return false;
}

bool fields_read(struct command *command, uint64_t data)
{
    const struct sev_call *call = command->call;
    uint8_t structure[SEV_MAX_STRUCTURE_SIZE];
    unsigned i;

    if (has_field(call, SEV_FIELD_IN) &&
        !memory_read(structure, data, call->structure_size)) {
        return false;
    }
    for (i = 0; i < call->field_count; i++) {
        const struct sev_field *field = &call->fields[i];

        if (field->flags & SEV_FIELD_POINTER) {
            command->in[i] = data;
        } else if (field->flags & SEV_FIELD_IN) {
            command->in[i] = load_le(structure + field->offset, field->size);
        }
    }
    return true;
}

bool fields_write(const struct command *command, uint64_t data)
{
    unsigned i;

    for (i = 0; i < command->call->field_count; i++) {
        const struct sev_field *field = &command->call->fields[i];

        if ((command->out_mask & (1u << i)) &&
            !memory_write(data + field->offset, &command->out[i],
                          field->size)) {
            return false;
        }
    }
    return true;
}
