/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commands: one at a time, each within its deadline
 */

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include "conn.h"

/* Addresses in segments are without these (docs/wire.rst, Guest memory) */
#define ADDRESS_MASK        (UINT64_MAX >> 4)
#define SEGMENT_HEAD        16u
#define MAX_ERRNO           4095

/* What became of a frame */
enum outcome {
    GO_ON,
    ANSWERED,
    BROKEN,
};

/* -errno, or what the daemon has announced that it be instead */
static int64_t sane_status(int64_t announced, int64_t otherwise)
{
    return announced >= -MAX_ERRNO && announced <= UINT32_MAX && announced ?
           announced : otherwise;
}

static void put_segment(struct conn *conn, const struct command *command,
                        const struct announced *spec, unsigned index)
{
    const struct announced_buffer *buffer = &spec->buffers[index];
    struct frame *frame = &conn->stream.out;
    uint64_t address = command->in[buffer->address_register -
                                   HCLP_FIRST_ARGUMENT];
    uint64_t size = buffer->kind == HCLP_BUFFER_SIZED ?
        command->in[buffer->size_register - HCLP_FIRST_ARGUMENT] :
        buffer->max_size;
    size_t later = (spec->buffer_count - index - 1) * SEGMENT_HEAD;
    uint8_t status = HCLP_SEGMENT_OK;
    size_t head = frame->size;
    uint32_t data_size = 0;
    uint8_t *data;

    put_zeroes(frame, SEGMENT_HEAD);
    if (size > buffer->max_size) {
        status = HCLP_SEGMENT_TOO_LARGE;
    } else if (!memory_is_mapped(address, size)) {
        status = HCLP_SEGMENT_NOT_RAM;
    } else if (buffer->direction & HCLP_DIRECTION_IN) {
        if (frame->size + size + later > conn->stream.max_frame) {
            status = HCLP_SEGMENT_TOO_LARGE;
        } else {
            data_size = (uint32_t)size;
            data = put_space(frame, data_size);
            if (data && !memory_read(data, address, data_size)) {
                status = HCLP_SEGMENT_NOT_RAM;
                data_size = 0;
            }
        }
    }
    /* The head comes last: only now it is known */
    frame->size = head;
    put_u64(frame, address & ADDRESS_MASK);
    put_u32(frame, data_size);
    put_u8(frame, (uint8_t)index);
    put_u8(frame, status);
    put_zeroes(frame, 2);
    put_space(frame, data_size);
}

static void build_call(struct conn *conn, const struct command *command,
                       const struct announced *spec)
{
    struct frame *frame = conn_begin_call(conn, HCLP_CALL, 0, conn->seq);
    unsigned i;

    put_u8(frame, HCLP_LEVEL_COMMAND);
    put_u8(frame, spec->buffer_count);
    put_zeroes(frame, 6);
    for (i = 0; i < HCLP_REGISTER_COUNT; i++) {
        uint64_t value = 0;

        if (i == HCLP_STATUS_INDEX) {
            value = command->call->number;
        } else if (i >= HCLP_FIRST_INDEX &&
                   i - HCLP_FIRST_INDEX < command->call->field_count) {
            value = command->in[i - HCLP_FIRST_INDEX];
        }
        put_u64(frame, value);
    }
    put_zeroes(frame, 4 * 8);       /* NIP, MSR, PIDR, LPIDR */
    for (i = 0; i < spec->buffer_count; i++) {
        put_segment(conn, command, spec, i);
    }
}

/* What the daemon says while a command is carried out */

bool conn_is_live(const struct conn *conn, const struct waiting *waiting,
                  const struct header *header)
{
    return waiting->command && header->seq == conn->seq;
}

static bool is_cancelling(const struct conn *conn, uint64_t seq)
{
    unsigned i;

    for (i = 0; i < conn->cancelling_count; i++) {
        if (conn->cancelling[i] == seq) {
            return true;
        }
    }
    return false;
}

/*
 * Lengths come back with INVALID_LEN, other fields with success only: what
 * the table says, whatever the daemon does.
 */
static const char *take_registers(struct command *command,
                                  const struct reply *reply)
{
    const struct sev_call *call = command->call;
    uint32_t known = 0;
    unsigned i;

    command->out_mask = 0;
    for (i = 0; i < call->field_count; i++) {
        const struct sev_field *field = &call->fields[i];
        uint32_t bit = 1u << (HCLP_FIRST_ARGUMENT + i);

        if (!(field->flags & SEV_FIELD_OUT)) {
            continue;
        }
        known |= bit;
        if ((reply->register_mask & bit) &&
            (reply->status == 0 ||
             (field->also && reply->status == field->also))) {
            command->out[i] = reply->registers[HCLP_FIRST_ARGUMENT + i];
            command->out_mask |= 1u << i;
        }
    }
    return reply->register_mask & ~known ?
           "it sets a field that the command does not give back" : NULL;
}

static enum outcome handle_reply(struct conn *conn, struct waiting *waiting,
                                 const struct header *header,
                                 struct reader *payload)
{
    struct command *command = waiting->command;
    struct reply reply;
    const char *why;

    parse_reply(payload, &reply);
    if (payload->bad) {
        conn_breach(conn, "REPLY", payload->why);
        return BROKEN;
    }
    if (!conn_is_live(conn, waiting, header)) {
        if (is_cancelling(conn, header->seq)) {
            return GO_ON;
        }
        conn_breach(conn, "REPLY", "there is no such call");
        return BROKEN;
    }
    why = reply.status < -MAX_ERRNO || reply.status > UINT32_MAX ?
          "its status is neither a firmware's nor an errno" :
          take_registers(command, &reply);
    if (why) {
        conn_breach(conn, "REPLY", why);
        return BROKEN;
    }
    waiting->status = reply.status;
    if (segments_check(command, reply.writes, reply.write_count) <
        reply.write_count) {
        command->out_mask = 0;
        waiting->status = sane_status(waiting->spec->lost_status, -ETIMEDOUT);
    } else if (segments_check_mapped(reply.writes, reply.write_count) <
               reply.write_count ||
               segments_write(reply.writes, reply.write_count) <
               reply.write_count) {
        command->out_mask = 0;
        waiting->status = -EFAULT;
    }
    return ANSWERED;
}

static bool handle_cancelled(struct conn *conn, const struct header *header,
                             struct reader *payload)
{
    uint32_t effect = get_u32(payload);
    unsigned i;

    get_reserved(payload, 4);
    reader_end(payload);
    if (!payload->bad && effect > HCLP_EFFECT_MAY_REMAIN) {
        reader_fail(payload, "its effect is unknown");
    }
    if (!payload->bad && !is_cancelling(conn, header->seq)) {
        reader_fail(payload, "nothing was cancelled");
    }
    if (payload->bad) {
        conn_breach(conn, "CANCELLED", payload->why);
        return false;
    }
    for (i = 0; conn->cancelling[i] != header->seq; i++) {
        continue;
    }
    conn->cancelling[i] = conn->cancelling[--conn->cancelling_count];
    return true;
}

/* There is no machine here to stop or to reset, but its guest can end */
static bool handle_control(struct conn *conn, struct reader *payload)
{
    struct text text;

    parse_text(payload, &text);
    if (payload->bad) {
        conn_breach(conn, "CONTROL", payload->why);
        return false;
    }
    if (text.code == HCLP_CONTROL_TERMINATE) {
        conn_lose(conn, "it ends the guest: %s", text.text);
        return false;
    }
    shim_error("the daemon asks for what a program cannot do (CONTROL %u):"
               " %s", text.code, text.text);
    return true;
}

static enum outcome handle_frame(struct conn *conn, struct waiting *waiting,
                                 const struct header *header,
                                 struct reader *payload)
{
    bool is_of_call = header->type == HCLP_REPLY ||
                      header->type == HCLP_CANCELLED ||
                      header->type == HCLP_READ || header->type == HCLP_WRITE;
    bool is_good = false;

    if (header->vcpu != (is_of_call ? 0 : HCLP_NO_VCPU)) {
        conn_breach(conn, frame_name(header->type),
                    "it is for another channel");
        return BROKEN;
    }
    switch (header->type) {
    case HCLP_REPLY:
        return handle_reply(conn, waiting, header, payload);
    case HCLP_READ:
        is_good = conn_handle_read(conn, waiting, header, payload);
        break;
    case HCLP_WRITE:
        is_good = conn_handle_write(conn, waiting, header, payload);
        break;
    case HCLP_CANCELLED:
        is_good = handle_cancelled(conn, header, payload);
        break;
    case HCLP_ANNOUNCE:
        is_good = conn_handle_announce(conn, waiting, header, payload);
        break;
    case HCLP_CONTROL:
        is_good = handle_control(conn, payload);
        break;
    case HCLP_GOODBYE:
        conn_handle_goodbye(conn, payload);
        break;
    default:
        conn_breach(conn, frame_name(header->type), "it is not expected");
        break;
    }
    return is_good ? GO_ON : BROKEN;
}

/* The daemon may still be at it: what it does from now on has no effect */
static void cancel(struct conn *conn)
{
    struct frame *frame;
    const char *why = NULL;

    if (conn->cancelling_count == HCLP_MAX_CANCELLING) {
        conn_lose(conn, "it has not acknowledged %u cancelled commands",
                  conn->cancelling_count);
        return;
    }
    frame = conn_begin_call(conn, HCLP_CANCEL, 0, conn->seq);
    put_u32(frame, HCLP_CANCEL_DEADLINE);
    put_u32(frame, 0);
    if (!conn_finish(conn, now_ms() + PARTING_MS, &why)) {
        conn_lose(conn, "%s", why);
        return;
    }
    conn->cancelling[conn->cancelling_count++] = conn->seq;
}

static int64_t give_up(struct conn *conn, const struct waiting *waiting)
{
    shim_error("%s: the daemon has not answered within %" PRIu32 " ms",
               waiting->command->call->name, waiting->spec->deadline_ms);
    cancel(conn);
    return sane_status(waiting->spec->timeout_status, -ETIMEDOUT);
}

static int64_t wait_for_reply(struct conn *conn, struct waiting *waiting)
{
    int64_t lost = sane_status(waiting->spec->lost_status, -ETIMEDOUT);

    for (;;) {
        struct header header;
        struct reader payload;
        const char *why = NULL;

        switch (stream_receive(&conn->stream, waiting->deadline, &header,
                               &payload, &why)) {
        case STREAM_OK:
            break;
        case STREAM_LATE:
            return give_up(conn, waiting);
        case STREAM_LOST:
            conn_lose(conn, "%s", why);
            return lost;
        case STREAM_BREACH:
            conn_breach(conn, frame_name(header.type), why);
            return lost;
        }
        switch (handle_frame(conn, waiting, &header, &payload)) {
        case GO_ON:
            break;
        case ANSWERED:
            return waiting->status;
        case BROKEN:
            return lost;
        }
        /* What is there already is taken, or the daemon could go on for ever */
        if (now_ms() >= waiting->deadline) {
            return give_up(conn, waiting);
        }
    }
}

bool conn_check(struct conn *conn)
{
    struct waiting nothing = { .deadline = now_ms() + PARTING_MS };

    if (!stream_is_whole(&conn->stream)) {
        conn_lose(conn, "the program has closed descriptor %d, which was ours",
                  conn->stream.fd);
        return false;
    }
    for (;;) {
        struct header header;
        struct reader payload;
        const char *why = NULL;

        /* No later than now */
        switch (stream_receive(&conn->stream, 0, &header, &payload, &why)) {
        case STREAM_OK:
            if (handle_frame(conn, &nothing, &header, &payload) == BROKEN) {
                return false;
            }
            /* The rest is taken while the command waits, until its deadline */
            if (now_ms() >= nothing.deadline) {
                return true;
            }
            break;
        case STREAM_LATE:
            return true;
        case STREAM_LOST:
            conn_lose(conn, "%s", why);
            return false;
        case STREAM_BREACH:
            conn_breach(conn, frame_name(header.type), why);
            return false;
        }
    }
}

int64_t conn_call(struct conn *conn, struct command *command)
{
    unsigned index = (unsigned)(command->call - sev_calls);
    const struct announced *spec = &conn->service.calls[index];
    struct waiting waiting = { .command = command, .spec = spec };
    const char *why = NULL;

    command->out_mask = 0;
    if (!conn->service.is_served[index]) {
        return -EINVAL;
    }
    if (spec->disposition == HCLP_DISPOSITION_ANSWER) {
        return sane_status(spec->timeout_status, -EINVAL);
    }
    conn->seq++;
    waiting.deadline = now_ms() + spec->deadline_ms;
    build_call(conn, command, spec);
    if (!conn_finish(conn, waiting.deadline, &why)) {
        conn_lose(conn, "%s", why);
        return sane_status(spec->lost_status, -ETIMEDOUT);
    }
    return wait_for_reply(conn, &waiting);
}
