/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which memory the daemon may touch while a command is carried out: what the
 * command names, and nothing else of the program
 */

#include "shim.h"

/* The buffer's first byte and the one after its last; false if it is none */
static bool extent(const struct command *command,
                   const struct sev_buffer *buffer, uint64_t *first,
                   uint64_t *end)
{
    uint64_t mask = (uint64_t)command->call->block - 1;
    uint64_t size = buffer->size == SEV_SIZE_FIXED ?
                    buffer->fixed_size : command->in[buffer->size];

    *first = command->in[buffer->address];
    *end = *first + size;
    if (!size || *end < *first || *end + mask < *end) {
        return false;
    }
    *first &= ~mask;
    *end = (*end + mask) & ~mask;
    return true;
}

uint64_t access_room(const struct command *command)
{
    uint64_t room = 0;
    unsigned i;

    for (i = 0; i < command->call->buffer_count; i++) {
        const struct sev_buffer *buffer = &command->call->buffers[i];
        uint64_t first, end;

        if ((buffer->direction & ACCESS_WRITE) &&
            extent(command, buffer, &first, &end)) {
            room += end - first;
        }
    }
    return room;
}

bool access_allowed(const struct command *command, uint64_t address,
                    uint64_t size, unsigned way)
{
    unsigned i;

    if (!size) {
        return true;
    }
    for (i = 0; i < command->call->buffer_count; i++) {
        const struct sev_buffer *buffer = &command->call->buffers[i];
        uint64_t first, end;

        /* What is written may be read: parts of blocks are filled up */
        if (way == ACCESS_WRITE && !(buffer->direction & ACCESS_WRITE)) {
            continue;
        }
        if (extent(command, buffer, &first, &end) &&
            address >= first && address < end && size <= end - address) {
            return true;
        }
    }
    return false;
}
