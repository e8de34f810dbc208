/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Parsing frames
 *
 * The daemon is not trusted: every size and count is compared with a bound
 * and with the bytes at hand before it is used.
 */

#include <endian.h>
#include <string.h>
#include "wire.h"

void reader_fail(struct reader *reader, const char *why)
{
    if (!reader->bad) {
        reader->bad = true;
        reader->why = why;
    }
}

const uint8_t *get_bytes(struct reader *reader, size_t size)
{
    const uint8_t *p = reader->p;

    if (reader->bad || size > reader->left) {
        reader_fail(reader, "it ends too early");
        return NULL;
    }
    reader->p += size;
    reader->left -= size;
    return p;
}

/* Leaves value alone if there is no more */
static void get_into(struct reader *reader, void *value, size_t size)
{
    const uint8_t *p = get_bytes(reader, size);

    if (p) {
        memcpy(value, p, size);
    }
}

uint8_t get_u8(struct reader *reader)
{
    const uint8_t *p = get_bytes(reader, 1);

    return p ? *p : 0;
}

uint16_t get_u16(struct reader *reader)
{
    uint16_t value = 0;

    get_into(reader, &value, sizeof(value));
    return be16toh(value);
}

uint32_t get_u32(struct reader *reader)
{
    uint32_t value = 0;

    get_into(reader, &value, sizeof(value));
    return be32toh(value);
}

uint64_t get_u64(struct reader *reader)
{
    uint64_t value = 0;

    get_into(reader, &value, sizeof(value));
    return be64toh(value);
}

void get_reserved(struct reader *reader, size_t size)
{
    const uint8_t *p = get_bytes(reader, size);
    size_t i;

    for (i = 0; p && i < size; i++) {
        if (p[i]) {
            reader_fail(reader, "a reserved field is not zero");
        }
    }
}

bool reader_end(struct reader *reader)
{
    if (!reader->bad && reader->left) {
        reader_fail(reader, "bytes follow its end");
    }
    return !reader->bad;
}

bool parse_header(const uint8_t *bytes, struct header *header,
                  const char **why)
{
    struct reader r = { .p = bytes, .left = HCLP_HEADER_SIZE };
    uint32_t magic = get_u32(&r);

    header->type = get_u16(&r);
    header->flags = get_u16(&r);
    header->size = get_u32(&r);
    header->vcpu = get_u32(&r);
    header->reset = get_u32(&r);
    header->request = get_u32(&r);
    header->seq = get_u64(&r);

    if (magic != HCLP_MAGIC) {
        *why = "it is no frame of this protocol";
    } else if (header->size < HCLP_HEADER_SIZE) {
        *why = "it claims to be smaller than its header";
    } else if (header->flags) {
        *why = "it has unknown flags";
    } else if (header->reset) {
        *why = "it has a reset count, and nothing here is ever reset";
    } else {
        return true;
    }
    return false;
}

/* Announcements */

static void get_announced(struct reader *r, struct announced *call)
{
    unsigned i;

    call->number = get_u64(r);
    call->level = get_u8(r);
    call->disposition = get_u8(r);
    get_u8(r);                      /* flags: nothing here can wait */
    call->buffer_count = get_u8(r);
    call->deadline_ms = get_u32(r);
    call->timeout_status = (int64_t)get_u64(r);
    call->lost_status = (int64_t)get_u64(r);

    if (call->disposition > HCLP_DISPOSITION_ANSWER) {
        reader_fail(r, "a call has an unknown disposition");
    }
    if (call->buffer_count > HCLP_MAX_BUFFERS) {
        reader_fail(r, "a call has too many buffers");
    }
    for (i = 0; i < call->buffer_count && !r->bad; i++) {
        struct announced_buffer *buffer = &call->buffers[i];

        buffer->address_register = get_u8(r);
        buffer->kind = get_u8(r);
        buffer->direction = get_u8(r);
        buffer->size_register = get_u8(r);
        buffer->max_size = get_u32(r);
    }
}

/* Is it one that the command has? Else the daemon would be shown others. */
static bool is_own_buffer(const struct sev_call *call,
                          const struct announced_buffer *announced)
{
    unsigned i;

    for (i = 0; i < call->buffer_count; i++) {
        const struct sev_buffer *own = &call->buffers[i];

        if (announced->address_register !=
            HCLP_FIRST_ARGUMENT + own->address ||
            !announced->direction ||
            (announced->direction & ~own->direction)) {
            continue;
        }
        if (own->size == SEV_SIZE_FIXED) {
            return announced->kind == HCLP_BUFFER_FIXED &&
                   !announced->size_register &&
                   announced->max_size <= own->fixed_size;
        }
        return announced->kind == HCLP_BUFFER_SIZED &&
               announced->size_register == HCLP_FIRST_ARGUMENT + own->size;
    }
    return false;
}

/* 0 if it is served, else a reason */
static uint8_t judge(const struct service *service,
                     const struct announced *announced,
                     const struct sev_call *call)
{
    unsigned i;

    if (announced->level != HCLP_LEVEL_COMMAND) {
        return HCLP_REFUSED_LEVEL_NOT_NEGOTIATED;
    }
    if (!call) {
        return HCLP_REFUSED_OUT_OF_RANGE;
    }
    if (service->is_served[call - sev_calls]) {
        return HCLP_REFUSED_DUPLICATE;
    }
    for (i = 0; i < announced->buffer_count; i++) {
        if (!is_own_buffer(call, &announced->buffers[i])) {
            return HCLP_REFUSED_BAD_BUFFER;
        }
    }
    return 0;
}

static void serve(struct service *service, const struct announced *announced)
{
    const struct sev_call *call = sev_call_find(announced->number);
    uint8_t reason = judge(service, announced, call);

    if (reason) {
        struct refusal *refusal = &service->refused[service->refused_count++];

        refusal->number = announced->number;
        refusal->level = announced->level;
        refusal->reason = reason;
    } else {
        service->is_served[call - sev_calls] = true;
        service->calls[call - sev_calls] = *announced;
    }
}

/* The device tree is none of ours, but has to be well-formed */
static void skip_text(struct reader *r, unsigned min, unsigned max)
{
    unsigned size = get_u16(r);

    if (!r->bad && (size < min || size > max)) {
        reader_fail(r, "a string of the device tree has a bad size");
    }
    get_bytes(r, size);
}

void parse_announcement(struct reader *r, struct service *service)
{
    unsigned calls = get_u16(r);
    unsigned strings = get_u16(r);
    unsigned properties = get_u16(r);
    unsigned i;

    memset(service, 0, sizeof(*service));
    get_reserved(r, 2);
    if (calls > HCLP_MAX_CALLS || strings > HCLP_MAX_DT_STRINGS ||
        properties > HCLP_MAX_DT_PROPERTIES) {
        reader_fail(r, "it announces more than is possible");
    }
    for (i = 0; i < calls && !r->bad; i++) {
        struct announced announced = { 0 };

        get_announced(r, &announced);
        if (!r->bad) {
            serve(service, &announced);
        }
    }
    for (i = 0; i < strings && !r->bad; i++) {
        skip_text(r, 1, HCLP_MAX_DT_STRING_SIZE);
    }
    for (i = 0; i < properties && !r->bad; i++) {
        skip_text(r, 1, HCLP_MAX_DT_NAME_SIZE);
        skip_text(r, 0, HCLP_MAX_DT_VALUE_SIZE);
    }
    reader_end(r);
}

void parse_welcome(struct reader *r, struct welcome *welcome,
                   struct service *service)
{
    welcome->version = get_u16(r);
    get_reserved(r, 2);
    welcome->max_frame_size = get_u32(r);
    welcome->features = get_u64(r);
    parse_announcement(r, service);
}

/* Calls */

static unsigned get_segments(struct reader *r, struct segment *segments,
                             unsigned count, bool with_data)
{
    unsigned i;

    if (count > HCLP_MAX_SEGMENTS) {
        reader_fail(r, "it has too many segments");
    }
    for (i = 0; i < count && !r->bad; i++) {
        uint32_t flags;

        segments[i].address = get_u64(r);
        segments[i].size = get_u32(r);
        segments[i].data = NULL;
        if (!with_data) {
            get_reserved(r, 4);
            continue;
        }
        flags = get_u32(r);
        if (flags & ~HCLP_WRITE_FLAG_ZERO) {
            reader_fail(r, "a segment has unknown flags");
        } else if (!flags) {
            segments[i].data = get_bytes(r, segments[i].size);
        }
    }
    return r->bad ? 0 : count;
}

void parse_reply(struct reader *r, struct reply *reply)
{
    uint64_t nip, msr, msr_mask;
    uint16_t context;
    unsigned i;

    reply->status = (int64_t)get_u64(r);
    reply->register_mask = get_u32(r);
    context = get_u16(r);
    reply->write_count = get_u16(r);
    nip = get_u64(r);
    msr = get_u64(r);
    msr_mask = get_u64(r);
    if (context || nip || msr || msr_mask) {
        reader_fail(r, "it changes NIP, MSR or pages, of which there are none");
    }
    for (i = 0; i < 32; i++) {
        if (reply->register_mask & (1u << i)) {
            reply->registers[i] = get_u64(r);
        }
    }
    reply->write_count = get_segments(r, reply->writes, reply->write_count,
                                      true);
    reader_end(r);
}

unsigned parse_read(struct reader *r, struct segment *segments)
{
    unsigned count = get_u32(r);

    get_reserved(r, 4);
    count = get_segments(r, segments, count, false);
    reader_end(r);
    return count;
}

unsigned parse_write(struct reader *r, struct segment *segments)
{
    unsigned count = get_u32(r);

    get_reserved(r, 4);
    count = get_segments(r, segments, count, true);
    reader_end(r);
    return count;
}

void parse_text(struct reader *r, struct text *text)
{
    const uint8_t *p;
    unsigned size;

    text->code = get_u16(r);
    size = get_u16(r);
    if (size > HCLP_MAX_TEXT_SIZE) {
        reader_fail(r, "its text is too long");
    }
    p = get_bytes(r, size);
    if (reader_end(r)) {
        shim_quote(text->text, sizeof(text->text), p, size);
    }
}
