/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A connection to the daemon: negotiation, and one command at a time
 */

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "stream.h"

/* How long the daemon may take to greet, unless HCALLD_SEV_TIMEOUT_MS says */
#define GREETING_MS         10000
/* For words that are said in passing: to cancel, to part */
#define PARTING_MS          100
#define ADDRESS_SPACE       ((uint64_t)1 << 47)
/* Addresses in segments are without these (docs/wire.rst, Guest memory) */
#define ADDRESS_MASK        (UINT64_MAX >> 4)
#define SEGMENT_HEAD        16u
#define READ_DATA_HEAD      8u
#define MAX_ERRNO           4095

struct conn {
    enum conn_state state;
    struct stream stream;
    bool is_greeted;                /* the daemon has said WELCOME */
    uint8_t instance[16];
    uint32_t connections;
    uint64_t seq;
    struct service service;
    uint64_t cancelling[HCLP_MAX_CANCELLING];
    unsigned cancelling_count;
};

/* What became of a frame */
enum outcome {
    GO_ON,
    ANSWERED,
    BROKEN,
};

struct conn *conn_new(void)
{
    struct conn *conn = calloc(1, sizeof(*conn));

    if (conn) {
        conn->stream.fd = -1;
        if (getrandom(conn->instance, sizeof(conn->instance), 0) !=
            sizeof(conn->instance)) {
            free(conn);
            return NULL;
        }
    }
    return conn;
}

enum conn_state conn_state(const struct conn *conn)
{
    return conn->state;
}

void conn_abandon(struct conn *conn)
{
    if (conn->stream.fd >= 0) {
        next_close(conn->stream.fd);
        conn->stream.fd = -1;
    }
    conn->state = CONN_LOST;
}

static struct frame *begin(struct conn *conn, uint16_t type)
{
    struct header header = { .type = type, .vcpu = HCLP_NO_VCPU };

    frame_begin(&conn->stream.out, &header);
    return &conn->stream.out;
}

/* A frame that belongs to a call, or answers one that does */
static struct frame *begin_call(struct conn *conn, uint16_t type,
                                uint32_t request, uint64_t seq)
{
    struct header header = { .type = type, .request = request, .seq = seq };

    frame_begin(&conn->stream.out, &header);
    return &conn->stream.out;
}

static bool finish(struct conn *conn, int64_t deadline, const char **why)
{
    frame_end(&conn->stream.out);
    return stream_send(&conn->stream, deadline, why) == STREAM_OK;
}

static void say_goodbye(struct conn *conn, uint16_t reason, const char *text)
{
    struct frame *frame;
    const char *why;

    if (conn->stream.fd < 0 || !stream_is_whole(&conn->stream)) {
        return;
    }
    frame = begin(conn, HCLP_SHIM_GOODBYE);
    put_u16(frame, reason);
    put_text(frame, text);
    finish(conn, now_ms() + PARTING_MS, &why);
}

void conn_free(struct conn *conn)
{
    if (conn->state == CONN_READY) {
        say_goodbye(conn, HCLP_GOODBYE_SHUTDOWN, "the VM is closed");
    }
    stream_free(&conn->stream);
    free(conn);
}

void conn_reset(struct conn *conn)
{
    stream_close(&conn->stream);
    conn->state = CONN_NEVER;
}

static void PRINTF(2, 3) lose(struct conn *conn, const char *format, ...)
{
    char text[HCLP_MAX_TEXT_SIZE];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    shim_error("lost the connection to the daemon: %s", text);
    stream_close(&conn->stream);
    conn->state = CONN_LOST;
}

static void breach(struct conn *conn, const char *frame, const char *why)
{
    char text[HCLP_MAX_TEXT_SIZE];

    snprintf(text, sizeof(text), "%s: %s", frame, why);
    say_goodbye(conn, HCLP_GOODBYE_BREACH, text);
    lose(conn, "it breaks the protocol: %s", text);
}

/* Negotiation */

static const char *frame_name(uint16_t type)
{
    static const char *const names[] = {
        [HCLP_WELCOME] = "WELCOME", [HCLP_ANNOUNCE] = "ANNOUNCE",
        [HCLP_GOODBYE] = "GOODBYE", [HCLP_REPLY] = "REPLY",
        [HCLP_CANCELLED] = "CANCELLED", [HCLP_READ] = "READ",
        [HCLP_WRITE] = "WRITE", [HCLP_EVENT_ACK] = "EVENT_ACK",
        [HCLP_CONTROL] = "CONTROL", [HCLP_PAGES] = "PAGES",
    };

    return type < sizeof(names) / sizeof(names[0]) && names[type] ?
           names[type] : "a frame of unknown type";
}

static int64_t greeting_ms(void)
{
    const char *value = secure_getenv("HCALLD_SEV_TIMEOUT_MS");
    long ms = value ? strtol(value, NULL, 10) : 0;

    return ms > 0 ? ms : GREETING_MS;
}

static bool send_hello(struct conn *conn, int64_t deadline, const char **why)
{
    const char *name = secure_getenv("HCALLD_SEV_PLATFORM");
    struct frame *frame = begin(conn, HCLP_HELLO);

    put_u16(frame, HCLP_VERSION);
    put_u16(frame, HCLP_VERSION);
    put_u32(frame, HCLP_MAX_MAX_FRAME);
    put_u64(frame, HCLP_FEATURE_COMMANDS);
    put_bytes(frame, conn->instance, sizeof(conn->instance));
    put_zeroes(frame, 16);
    put_u32(frame, conn->connections);
    put_u32(frame, 1);
    put_u32(frame, 1);
    put_u32(frame, 0);
    put_u8(frame, 12);
    put_zeroes(frame, 7);
    put_text(frame, name ? name : "");
    put_text(frame, program_invocation_short_name);
    return finish(conn, deadline, why);
}

static void put_accept(struct frame *frame, const struct service *service,
                       bool is_active)
{
    unsigned i;

    put_u16(frame, (uint16_t)service->refused_count);
    put_u16(frame, is_active);
    put_zeroes(frame, 4);
    for (i = 0; i < service->refused_count; i++) {
        put_u64(frame, service->refused[i].number);
        put_u8(frame, service->refused[i].level);
        put_u8(frame, service->refused[i].reason);
        put_zeroes(frame, 6);
    }
}

/* What is wrong with it, or NULL */
static const char *check_welcome(const struct welcome *welcome)
{
    if (welcome->version != HCLP_VERSION) {
        return "it chooses a version that was not offered";
    }
    if (welcome->max_frame_size < HCLP_MIN_MAX_FRAME ||
        welcome->max_frame_size > HCLP_MAX_MAX_FRAME) {
        return "its greatest frame is out of bounds";
    }
    if (welcome->features & ~(uint64_t)HCLP_FEATURE_COMMANDS) {
        return "it chooses features that were not offered";
    }
    if (!welcome->features) {
        return "it does not take SEV commands";
    }
    return NULL;
}

static void handle_goodbye(struct conn *conn, struct reader *payload)
{
    struct text text;

    parse_text(payload, &text);
    if (payload->bad) {
        breach(conn, "GOODBYE", payload->why);
    } else {
        lose(conn, "it says goodbye (reason %u): %s", text.code, text.text);
    }
}

static bool take_welcome(struct conn *conn, int64_t deadline)
{
    struct welcome welcome;
    struct header header;
    struct reader payload;
    const char *why = NULL;

    switch (stream_receive(&conn->stream, deadline, &header, &payload, &why)) {
    case STREAM_OK:
        break;
    case STREAM_LATE:
        lose(conn, "it does not answer HELLO");
        return false;
    case STREAM_LOST:
        lose(conn, "%s", why);
        return false;
    case STREAM_BREACH:
        breach(conn, "what should be WELCOME", why);
        return false;
    }
    if (header.type == HCLP_GOODBYE) {
        handle_goodbye(conn, &payload);
        return false;
    }
    if (header.type != HCLP_WELCOME) {
        breach(conn, frame_name(header.type), "it is no answer to HELLO");
        return false;
    }
    parse_welcome(&payload, &welcome, &conn->service);
    why = payload.bad ? payload.why : check_welcome(&welcome);
    if (why) {
        breach(conn, "WELCOME", why);
        return false;
    }
    conn->stream.max_frame = welcome.max_frame_size;
    return true;
}

static bool send_ready(struct conn *conn, int64_t deadline, const char **why)
{
    struct frame *frame = begin(conn, HCLP_ACCEPT);

    put_accept(frame, &conn->service, true);
    if (!finish(conn, deadline, why)) {
        return false;
    }
    frame = begin(conn, HCLP_RAM);
    put_u16(frame, 1);
    put_u16(frame, 0);
    put_zeroes(frame, 4);
    put_u64(frame, 0);
    put_u64(frame, ADDRESS_SPACE);
    put_u64(frame, 0);
    put_u16(frame, HCLP_NO_DESCRIPTOR);
    put_zeroes(frame, 2);
    put_u32(frame, 1);
    return finish(conn, deadline, why);
}

static bool negotiate(struct conn *conn, int64_t deadline)
{
    const char *why = NULL;

    conn->stream.max_frame = HCLP_MIN_MAX_FRAME;
    conn->cancelling_count = 0;
    if (!send_hello(conn, deadline, &why)) {
        lose(conn, "%s", why);
        return false;
    }
    if (!take_welcome(conn, deadline)) {
        return false;
    }
    if (!send_ready(conn, deadline, &why)) {
        lose(conn, "%s", why);
        return false;
    }
    return true;
}

bool conn_open(struct conn *conn)
{
    const char *path = secure_getenv("HCALLD_SEV_SOCKET");
    int64_t deadline = now_ms() + greeting_ms();
    const char *why;

    if (conn->state != CONN_NEVER) {
        return conn->state == CONN_READY;
    }
    if (!path || !*path) {
        shim_error("HCALLD_SEV_SOCKET is not set; it names the socket that"
                   " `hcalld serve` listens on");
        return false;
    }
    why = stream_connect(&conn->stream, path, deadline);
    if (why) {
        shim_error("%s: %s%s%s; start `hcalld serve`, or name its socket in"
                   " HCALLD_SEV_SOCKET", path, why, errno ? ": " : "",
                   errno ? strerror(errno) : "");
        return false;
    }
    if (!negotiate(conn, deadline)) {
        conn->state = CONN_NEVER;
        return false;
    }
    conn->connections++;
    conn->state = CONN_READY;
    shim_trace("connected to %s", path);
    return true;
}

/* Sending a command */

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
    struct frame *frame = begin_call(conn, HCLP_CALL, 0, conn->seq);
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

struct waiting {
    struct command *command;        /* NULL: nothing is live */
    const struct announced *spec;
    int64_t deadline;
    int64_t status;
};

static bool is_live(const struct conn *conn, const struct waiting *waiting,
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

/* The index of the first that is not allowed, or @count */
static unsigned check_segments(const struct command *command,
                               const struct segment *segments, unsigned count)
{
    unsigned i;

    for (i = 0; i < count; i++) {
        if (!access_allowed(command, segments[i].address, segments[i].size,
                            ACCESS_WRITE)) {
            shim_error("%s: refused to write %" PRIu32 " bytes at 0x%" PRIx64
                       ", where the command has no buffer",
                       command->call->name, segments[i].size,
                       segments[i].address);
            break;
        }
    }
    return i;
}

static unsigned check_mapped(const struct segment *segments, unsigned count)
{
    unsigned i;

    for (i = 0; i < count; i++) {
        if (!memory_is_mapped(segments[i].address, segments[i].size)) {
            break;
        }
    }
    return i;
}

/* The same; those before it were written */
static unsigned write_segments(const struct segment *segments, unsigned count)
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

static enum outcome handle_reply(struct conn *conn, struct waiting *waiting,
                                 const struct header *header,
                                 struct reader *payload)
{
    struct command *command = waiting->command;
    struct reply reply;
    const char *why;

    parse_reply(payload, &reply);
    if (payload->bad) {
        breach(conn, "REPLY", payload->why);
        return BROKEN;
    }
    if (!is_live(conn, waiting, header)) {
        if (is_cancelling(conn, header->seq)) {
            return GO_ON;
        }
        breach(conn, "REPLY", "there is no such call");
        return BROKEN;
    }
    why = reply.status < -MAX_ERRNO || reply.status > UINT32_MAX ?
          "its status is neither a firmware's nor an errno" :
          take_registers(command, &reply);
    if (why) {
        breach(conn, "REPLY", why);
        return BROKEN;
    }
    waiting->status = reply.status;
    if (check_segments(command, reply.writes, reply.write_count) <
        reply.write_count) {
        command->out_mask = 0;
        waiting->status = sane_status(waiting->spec->lost_status, -ETIMEDOUT);
    } else if (check_mapped(reply.writes, reply.write_count) <
               reply.write_count ||
               write_segments(reply.writes, reply.write_count) <
               reply.write_count) {
        command->out_mask = 0;
        waiting->status = -EFAULT;
    }
    return ANSWERED;
}

static bool handle_read(struct conn *conn, struct waiting *waiting,
                        const struct header *header, struct reader *payload)
{
    struct segment segments[HCLP_MAX_SEGMENTS];
    unsigned i, count = parse_read(payload, segments);
    struct frame *frame;
    const char *why = NULL;

    if (payload->bad) {
        breach(conn, "READ", payload->why);
        return false;
    }
    frame = begin_call(conn, HCLP_READ_REPLY, header->request, header->seq);
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
        if (!is_live(conn, waiting, header)) {
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
    if (!finish(conn, waiting->deadline, &why)) {
        lose(conn, "%s", why);
        return false;
    }
    return true;
}

static bool handle_write(struct conn *conn, struct waiting *waiting,
                         const struct header *header, struct reader *payload)
{
    struct segment segments[HCLP_MAX_SEGMENTS];
    unsigned count = parse_write(payload, segments), bad = count;
    uint32_t status = HCLP_ACCESS_OK;
    struct frame *frame;
    const char *why = NULL;

    if (payload->bad) {
        breach(conn, "WRITE", payload->why);
        return false;
    }
    if (!is_live(conn, waiting, header)) {
        status = HCLP_ACCESS_NO_CALL;
    } else {
        bad = check_segments(waiting->command, segments, count);
        if (bad == count) {
            bad = check_mapped(segments, count);
        }
        if (bad == count) {
            bad = write_segments(segments, count);
        }
        if (bad < count) {
            status = HCLP_ACCESS_NOT_RAM;
        }
    }
    frame = begin_call(conn, HCLP_WRITE_REPLY, header->request, header->seq);
    put_u32(frame, status);
    put_u32(frame, bad < count ? bad : 0);
    if (!finish(conn, waiting->deadline, &why)) {
        lose(conn, "%s", why);
        return false;
    }
    return true;
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
        breach(conn, "CANCELLED", payload->why);
        return false;
    }
    for (i = 0; conn->cancelling[i] != header->seq; i++) {
        continue;
    }
    conn->cancelling[i] = conn->cancelling[--conn->cancelling_count];
    return true;
}

/* In force from the next reset, says the protocol: that is never */
static bool handle_announce(struct conn *conn, struct waiting *waiting,
                            const struct header *header,
                            struct reader *payload)
{
    struct service *service = malloc(sizeof(*service));
    struct header answer = {
        .type = HCLP_ACCEPT, .vcpu = HCLP_NO_VCPU, .request = header->request,
    };
    const char *why = NULL;

    if (!service) {
        lose(conn, "there is no memory for an announcement");
        return false;
    }
    parse_announcement(payload, service);
    if (!payload->bad && !header->request) {
        reader_fail(payload, "it has no number");
    }
    if (payload->bad) {
        breach(conn, "ANNOUNCE", payload->why);
    } else {
        frame_begin(&conn->stream.out, &answer);
        put_accept(&conn->stream.out, service, false);
        if (!finish(conn, waiting->deadline, &why)) {
            lose(conn, "%s", why);
        }
    }
    free(service);
    return conn->state == CONN_READY;
}

/* There is no machine here to stop or to reset, but its guest can end */
static bool handle_control(struct conn *conn, struct reader *payload)
{
    struct text text;

    parse_text(payload, &text);
    if (payload->bad) {
        breach(conn, "CONTROL", payload->why);
        return false;
    }
    if (text.code == HCLP_CONTROL_TERMINATE) {
        lose(conn, "it ends the guest: %s", text.text);
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
        breach(conn, frame_name(header->type), "it is for another channel");
        return BROKEN;
    }
    switch (header->type) {
    case HCLP_REPLY:
        return handle_reply(conn, waiting, header, payload);
    case HCLP_READ:
        is_good = handle_read(conn, waiting, header, payload);
        break;
    case HCLP_WRITE:
        is_good = handle_write(conn, waiting, header, payload);
        break;
    case HCLP_CANCELLED:
        is_good = handle_cancelled(conn, header, payload);
        break;
    case HCLP_ANNOUNCE:
        is_good = handle_announce(conn, waiting, header, payload);
        break;
    case HCLP_CONTROL:
        is_good = handle_control(conn, payload);
        break;
    case HCLP_GOODBYE:
        handle_goodbye(conn, payload);
        break;
    default:
        breach(conn, frame_name(header->type), "it is not expected");
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
        lose(conn, "it has not acknowledged %u cancelled commands",
             conn->cancelling_count);
        return;
    }
    frame = begin_call(conn, HCLP_CANCEL, 0, conn->seq);
    put_u32(frame, HCLP_CANCEL_DEADLINE);
    put_u32(frame, 0);
    if (!finish(conn, now_ms() + PARTING_MS, &why)) {
        lose(conn, "%s", why);
        return;
    }
    conn->cancelling[conn->cancelling_count++] = conn->seq;
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
            shim_error("%s: the daemon has not answered within %" PRIu32
                       " ms", waiting->command->call->name,
                       waiting->spec->deadline_ms);
            cancel(conn);
            return sane_status(waiting->spec->timeout_status, -ETIMEDOUT);
        case STREAM_LOST:
            lose(conn, "%s", why);
            return lost;
        case STREAM_BREACH:
            breach(conn, frame_name(header.type), why);
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
    }
}

bool conn_check(struct conn *conn)
{
    struct waiting nothing = { .deadline = now_ms() + PARTING_MS };

    if (!stream_is_whole(&conn->stream)) {
        lose(conn, "the program has closed descriptor %d, which was ours",
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
            break;
        case STREAM_LATE:
            return true;
        case STREAM_LOST:
            lose(conn, "%s", why);
            return false;
        case STREAM_BREACH:
            breach(conn, frame_name(header.type), why);
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
    if (!finish(conn, waiting.deadline, &why)) {
        lose(conn, "%s", why);
        return sane_status(spec->lost_status, -ETIMEDOUT);
    }
    return wait_for_reply(conn, &waiting);
}
