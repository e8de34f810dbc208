/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A connection to the daemon: its frames, its life and its loss
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include "conn.h"

/* How long a close() waits for the daemon to have ended the guest */
#define CLOSING_MS          1000

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

struct frame *conn_begin(struct conn *conn, uint16_t type)
{
    struct header header = { .type = type, .vcpu = HCLP_NO_VCPU };

    frame_begin(&conn->stream.out, &header);
    return &conn->stream.out;
}

struct frame *conn_begin_call(struct conn *conn, uint16_t type,
                              uint32_t request, uint64_t seq)
{
    struct header header = { .type = type, .request = request, .seq = seq };

    frame_begin(&conn->stream.out, &header);
    return &conn->stream.out;
}

bool conn_finish(struct conn *conn, int64_t deadline, const char **why)
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
    frame = conn_begin(conn, HCLP_SHIM_GOODBYE);
    put_u16(frame, reason);
    put_text(frame, text);
    conn_finish(conn, now_ms() + PARTING_MS, &why);
}

/*
 * KVM has decommissioned the guest when close() returns, and another's
 * FACTORY_RESET may be next: the daemon ends the connection after the guest.
 */
void conn_free(struct conn *conn)
{
    int64_t deadline = now_ms() + CLOSING_MS;
    int state, saved = errno;

    /* A close() may be cancelled; but it would be with a lock held here */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    if (conn->state == CONN_READY && stream_is_whole(&conn->stream)) {
        say_goodbye(conn, HCLP_GOODBYE_SHUTDOWN, "the VM is closed");
        stream_part(&conn->stream, deadline);
    }
    stream_free(&conn->stream);
    free(conn);
    pthread_setcancelstate(state, NULL);
    errno = saved;
}

void conn_reset(struct conn *conn)
{
    stream_close(&conn->stream);
    conn->state = CONN_NEVER;
}

void conn_lose(struct conn *conn, const char *format, ...)
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

void conn_breach(struct conn *conn, const char *frame, const char *why)
{
    char text[HCLP_MAX_TEXT_SIZE];

    snprintf(text, sizeof(text), "%s: %s", frame, why);
    say_goodbye(conn, HCLP_GOODBYE_BREACH, text);
    conn_lose(conn, "it breaks the protocol: %s", text);
}

const char *frame_name(uint16_t type)
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

void conn_handle_goodbye(struct conn *conn, struct reader *payload)
{
    struct text text;

    parse_text(payload, &text);
    if (payload->bad) {
        conn_breach(conn, "GOODBYE", payload->why);
    } else {
        conn_lose(conn, "it says goodbye (reason %u): %s", text.code,
                  text.text);
    }
}
