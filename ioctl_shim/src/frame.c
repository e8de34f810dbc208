/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Building frames
 */

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include "wire.h"

#define FIRST_ROOM 4096u

uint8_t *put_space(struct frame *frame, size_t size)
{
    size_t need = frame->size + size;

    if (frame->failed) {
        return NULL;
    }
    if (need > frame->room) {
        size_t room = frame->room ? frame->room : FIRST_ROOM;
        uint8_t *data;

        while (room < need) {
            room *= 2;
        }
        data = realloc(frame->data, room);
        if (!data) {
            frame->failed = true;
            return NULL;
        }
        frame->data = data;
        frame->room = room;
    }
    frame->size = need;
    return frame->data + need - size;
}

void put_bytes(struct frame *frame, const void *bytes, size_t size)
{
    uint8_t *p = put_space(frame, size);

    if (p && size) {
        memcpy(p, bytes, size);
    }
}

void put_u8(struct frame *frame, uint8_t value)
{
    put_bytes(frame, &value, sizeof(value));
}

void put_u16(struct frame *frame, uint16_t value)
{
    value = htobe16(value);
    put_bytes(frame, &value, sizeof(value));
}

void put_u32(struct frame *frame, uint32_t value)
{
    value = htobe32(value);
    put_bytes(frame, &value, sizeof(value));
}

void put_u64(struct frame *frame, uint64_t value)
{
    value = htobe64(value);
    put_bytes(frame, &value, sizeof(value));
}

void put_zeroes(struct frame *frame, size_t size)
{
    uint8_t *p = put_space(frame, size);

    if (p) {
        memset(p, 0, size);
    }
}

void put_text(struct frame *frame, const char *text)
{
    size_t size = strnlen(text, HCLP_MAX_TEXT_SIZE);

    put_u16(frame, (uint16_t)size);
    put_bytes(frame, text, size);
}

void frame_begin(struct frame *frame, const struct header *header)
{
    frame->size = 0;
    frame->failed = false;
    put_u32(frame, HCLP_MAGIC);
    put_u16(frame, header->type);
    put_u16(frame, header->flags);
    put_u32(frame, 0);
    put_u32(frame, header->vcpu);
    put_u32(frame, header->reset);
    put_u32(frame, header->request);
    put_u64(frame, header->seq);
}

void frame_end(struct frame *frame)
{
    uint32_t size = htobe32((uint32_t)frame->size);

    if (!frame->failed) {
        memcpy(frame->data + 8, &size, sizeof(size));
    }
}
