/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program's memory, as the daemon reads and writes it for a command
 */

#define _GNU_SOURCE
#include <inttypes.h>
#include "conn.h"

#define READ_DATA_HEAD      8u

unsigned segments_check(const struct command *command,
                        const struct segment *segments, unsigned count)
{
    uint64_t room = access_room(command);
    unsigned i;

    /* Each byte once: zeroes take no room in a frame, it could be 64 times */
    for (i = 0; i < count; room -= segments[i].size, i++) {
        if (segments[i].size > room ||
            !access_allowed(command, segments[i].address, segments[i].size,
                            ACCESS_WRITE)) {
            shim_error("%s: refused to write %" PRIu32 " bytes at 0x%" PRIx64
                       ", beyond the command's buffers",
                       command->call->name, segments[i].size,
                       segments[i].address);
            break;
        }
    }
    return i;
}

unsigned segments_check_mapped(const struct segment *segments, unsigned count)
{
    unsigned i;

    for (i = 0; i < count; i++) {
        if (!memory_is_mapped(segments[i].address, segments[i].size)) {
            break;
        }
    }
    return i;
}

unsigned segments_write(const struct segment *segments, unsigned count)
{
    unsigned i;

    for (i = 0; i < count; i++) {
        const struct segment *segment = &segments[i];

        if (!(segment->data ?
              memory_write(segment->address, segment->data, segment->size) :
              memory_zero(segment->address, segment->size))) {
            break;
        }
    }
    return i;
}

bool conn_handle_read(struct conn *conn, struct waiting *waiting,
                      const struct header *header, struct reader *payload)
{
    struct segment segments[HCLP_MAX_SEGMENTS];
    unsigned i, count = parse_read(payload, segments);
    struct frame *frame;
    const char *why = NULL;

    if (payload->bad) {
        conn_breach(conn, "READ", payload->why);
        return false;
    }
    frame = conn_begin_call(conn, HCLP_READ_REPLY, header->request,
                            header->seq);
    put_u32(frame, count);
    put_u32(frame, 0);
    for (i = 0; i < count; i++) {
        const struct segment *segment = &segments[i];
        size_t room = conn->stream.max_frame - frame->size -
                      (count - i) * READ_DATA_HEAD;
        uint32_t status = HCLP_ACCESS_OK;
        size_t head = frame->size;
        uint8_t *data;

        put_zeroes(frame, READ_DATA_HEAD);
        if (!conn_is_live(conn, waiting, header)) {
            status = HCLP_ACCESS_NO_CALL;
        } else if (!access_allowed(waiting->command, segment->address,
                                   segment->size, ACCESS_READ)) {
            shim_error("%s: refused to read %" PRIu32 " bytes at 0x%" PRIx64
                       ", where the command has no buffer",
                       waiting->command->call->name, segment->size,
                       segment->address);
            status = HCLP_ACCESS_NOT_RAM;
        } else if (segment->size > room) {
            status = HCLP_ACCESS_TOO_LARGE;
        } else {
            data = put_space(frame, segment->size);
            if (data && !memory_read(data, segment->address, segment->size)) {
                status = HCLP_ACCESS_NOT_RAM;
            }
        }
        frame->size = head;
        put_u32(frame, status == HCLP_ACCESS_OK ? segment->size : 0);
        put_u32(frame, status);
        if (status == HCLP_ACCESS_OK) {
            put_space(frame, segment->size);
        }
    }
    if (!conn_finish(conn, waiting->deadline, &why)) {
        conn_lose(conn, "%s", why);
        return false;
    }
    return true;
}

bool conn_handle_write(struct conn *conn, struct waiting *waiting,
                       const struct header *header, struct reader *payload)
{
    struct segment segments[HCLP_MAX_SEGMENTS];
    unsigned count = parse_write(payload, segments), bad = count;
    uint32_t status = HCLP_ACCESS_OK;
    struct frame *frame;
    const char *why = NULL;

    if (payload->bad) {
        conn_breach(conn, "WRITE", payload->why);
        return false;
    }
    if (!conn_is_live(conn, waiting, header)) {
        status = HCLP_ACCESS_NO_CALL;
    } else {
        bad = segments_check(waiting->command, segments, count);
        if (bad == count) {
            bad = segments_check_mapped(segments, count);
        }
        if (bad == count) {
            bad = segments_write(segments, count);
        }
        if (bad < count) {
            status = HCLP_ACCESS_NOT_RAM;
        }
    }
    frame = conn_begin_call(conn, HCLP_WRITE_REPLY, header->request,
                            header->seq);
    put_u32(frame, status);
    put_u32(frame, bad < count ? bad : 0);
    if (!conn_finish(conn, waiting->deadline, &why)) {
        conn_lose(conn, "%s", why);
        return false;
    }
    return true;
}
