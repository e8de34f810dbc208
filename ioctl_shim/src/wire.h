/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames: see docs/wire.rst
 */
#ifndef WIRE_H
#define WIRE_H

#include "shim.h"

/* A frame that is being built; after a failed allocation nothing is added */
struct frame {
    uint8_t *data;
    size_t size;
    size_t room;
    bool failed;
};

struct header {
    uint16_t type;
    uint16_t flags;
    uint32_t size;
    uint32_t vcpu;
    uint32_t reset;
    uint32_t request;
    uint64_t seq;
};

void frame_begin(struct frame *frame, const struct header *header);
void frame_end(struct frame *frame);
uint8_t *put_space(struct frame *frame, size_t size);
void put_u8(struct frame *frame, uint8_t value);
void put_u16(struct frame *frame, uint16_t value);
void put_u32(struct frame *frame, uint32_t value);
void put_u64(struct frame *frame, uint64_t value);
void put_zeroes(struct frame *frame, size_t size);
void put_bytes(struct frame *frame, const void *bytes, size_t size);
void put_text(struct frame *frame, const char *text);

/*
 * Reading: after a read past the end everything is zero and @bad is set, so
 * that one check is enough for a structure. @why is the first thing wrong.
 */
struct reader {
    const uint8_t *p;
    size_t left;
    bool bad;
    const char *why;
};

const uint8_t *get_bytes(struct reader *reader, size_t size);
uint8_t get_u8(struct reader *reader);
uint16_t get_u16(struct reader *reader);
uint32_t get_u32(struct reader *reader);
uint64_t get_u64(struct reader *reader);
void get_reserved(struct reader *reader, size_t size);
void reader_fail(struct reader *reader, const char *why);
/* True if all was right, and nothing follows */
bool reader_end(struct reader *reader);

bool parse_header(const uint8_t *bytes, struct header *header,
                  const char **why);

struct announced_buffer {
    uint8_t address_register;
    uint8_t kind;
    uint8_t direction;
    uint8_t size_register;
    uint32_t max_size;
};

struct announced {
    uint64_t number;
    uint8_t level;
    uint8_t disposition;
    uint8_t buffer_count;
    uint32_t deadline_ms;
    int64_t timeout_status;
    int64_t lost_status;
    struct announced_buffer buffers[HCLP_MAX_BUFFERS];
};

struct refusal {
    uint64_t number;
    uint8_t level;
    uint8_t reason;
};

/* An announcement as it is served: by the index of sev_calls */
struct service {
    bool is_served[SEV_CALL_COUNT];
    struct announced calls[SEV_CALL_COUNT];
    unsigned refused_count;
    struct refusal refused[HCLP_MAX_CALLS];
};

struct welcome {
    uint16_t version;
    uint32_t max_frame_size;
    uint64_t features;
};

void parse_welcome(struct reader *reader, struct welcome *welcome,
                   struct service *service);
void parse_announcement(struct reader *reader, struct service *service);

struct segment {
    uint64_t address;
    uint32_t size;
    const uint8_t *data;            /* NULL: zeroes */
};

struct reply {
    int64_t status;
    uint32_t register_mask;
    uint64_t registers[32];
    unsigned write_count;
    struct segment writes[HCLP_MAX_SEGMENTS];
};

void parse_reply(struct reader *reader, struct reply *reply);
unsigned parse_read(struct reader *reader, struct segment *segments);
unsigned parse_write(struct reader *reader, struct segment *segments);

/* A number and a text, of at most HCLP_MAX_TEXT_SIZE bytes */
struct text {
    uint16_t code;
    char text[4 * HCLP_MAX_TEXT_SIZE + 8];
};

void parse_text(struct reader *reader, struct text *text);

#endif
