/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Connecting to the daemon, and agreeing with it on what it serves
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "conn.h"

/* How long the daemon may take to greet, unless HCALLD_SEV_TIMEOUT_MS says */
#define GREETING_MS         10000

/* One vCPU stands for the program, which has no -uuid */
#define CHANNELS            1
#define UUID_SIZE           16
#define PAGE_SHIFT          12

/* All of it is the guest's RAM, so far as commands name it */
#define ADDRESS_SPACE       ((uint64_t)1 << 47)

static int64_t greeting_ms(void)
{
    const char *value = secure_getenv("HCALLD_SEV_TIMEOUT_MS");
    char *end = NULL;
    long ms = value ? strtol(value, &end, 10) : GREETING_MS;

    if (value && (end == value || *end || ms <= 0 || ms > INT32_MAX)) {
        shim_error("HCALLD_SEV_TIMEOUT_MS is no number of milliseconds from 1"
                   " to %d; %d are waited", INT32_MAX, GREETING_MS);
        return GREETING_MS;
    }
    return ms;
}

static bool send_hello(struct conn *conn, int64_t deadline, const char **why)
{
    const char *name = secure_getenv("HCALLD_SEV_PLATFORM");
    struct frame *frame = conn_begin(conn, HCLP_HELLO);

    put_u16(frame, HCLP_VERSION);           /* the oldest */
    put_u16(frame, HCLP_VERSION);           /* the newest */
    put_u32(frame, HCLP_MAX_MAX_FRAME);
    put_u64(frame, HCLP_FEATURE_COMMANDS);
    put_bytes(frame, conn->instance, sizeof(conn->instance));
    put_zeroes(frame, UUID_SIZE);
    put_u32(frame, conn->connections);
    put_u32(frame, CHANNELS);               /* there are, */
    put_u32(frame, CHANNELS);               /* and can be */
    put_u32(frame, 0);                      /* nothing will be sent again */
    put_u8(frame, PAGE_SHIFT);
    put_zeroes(frame, 7);
    put_text(frame, name ? name : "");
    put_text(frame, program_invocation_short_name);
    return conn_finish(conn, deadline, why);
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
        conn_lose(conn, "it does not answer HELLO");
        return false;
    case STREAM_LOST:
        conn_lose(conn, "%s", why);
        return false;
    case STREAM_BREACH:
        conn_breach(conn, "what should be WELCOME", why);
        return false;
    }
    if (header.type == HCLP_GOODBYE) {
        conn_handle_goodbye(conn, &payload);
        return false;
    }
    if (header.type != HCLP_WELCOME) {
        conn_breach(conn, frame_name(header.type), "it is no answer to HELLO");
        return false;
    }
    parse_welcome(&payload, &welcome, &conn->service);
    why = payload.bad ? payload.why : check_welcome(&welcome);
    if (why) {
        conn_breach(conn, "WELCOME", why);
        return false;
    }
    conn->stream.max_frame = welcome.max_frame_size;
    return true;
}

static bool send_ready(struct conn *conn, int64_t deadline, const char **why)
{
    struct frame *frame = conn_begin(conn, HCLP_ACCEPT);

    put_accept(frame, &conn->service, true);
    if (!conn_finish(conn, deadline, why)) {
        return false;
    }
    frame = conn_begin(conn, HCLP_RAM);
    put_u16(frame, 1);
    put_u16(frame, 0);
    put_zeroes(frame, 4);
    put_u64(frame, 0);
    put_u64(frame, ADDRESS_SPACE);
    put_u64(frame, 0);
    put_u16(frame, HCLP_NO_DESCRIPTOR);
    put_zeroes(frame, 2);
    put_u32(frame, 1);
    return conn_finish(conn, deadline, why);
}

static bool negotiate(struct conn *conn, int64_t deadline)
{
    const char *why = NULL;

    conn->stream.max_frame = HCLP_MIN_MAX_FRAME;
    conn->cancelling_count = 0;
    if (!send_hello(conn, deadline, &why)) {
        conn_lose(conn, "%s", why);
        return false;
    }
    if (!take_welcome(conn, deadline)) {
        return false;
    }
    if (!send_ready(conn, deadline, &why)) {
        conn_lose(conn, "%s", why);
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

/* In force from the next reset, says the protocol: that is never */
bool conn_handle_announce(struct conn *conn, struct waiting *waiting,
                          const struct header *header,
                          struct reader *payload)
{
    struct service *service = malloc(sizeof(*service));
    struct header answer = {
        .type = HCLP_ACCEPT, .vcpu = HCLP_NO_VCPU, .request = header->request,
    };
    const char *why = NULL;

    if (!service) {
        conn_lose(conn, "there is no memory for an announcement");
        return false;
    }
    parse_announcement(payload, service);
    if (!payload->bad && !header->request) {
        reader_fail(payload, "it has no number");
    }
    if (payload->bad) {
        conn_breach(conn, "ANNOUNCE", payload->why);
    } else {
        frame_begin(&conn->stream.out, &answer);
        put_accept(&conn->stream.out, service, false);
        if (!conn_finish(conn, waiting->deadline, &why)) {
            conn_lose(conn, "%s", why);
        }
    }
    free(service);
    return conn->state == CONN_READY;
}
