/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames over a unix socket, each within a time
 */
#ifndef STREAM_H
#define STREAM_H

#include <sys/stat.h>
#include "wire.h"

struct stream {
    int fd;                         /* -1: none */
    dev_t dev;                      /* what the descriptor is, in case the */
    ino_t ino;                      /* program closes it and makes another */
    struct stream *next;            /* of those that have a descriptor */
    uint32_t max_frame;
    struct frame out;
    uint8_t *in;
    size_t in_room;
    size_t in_used;                 /* of the frame that is coming */
};

enum stream_result {
    STREAM_OK,
    STREAM_LATE,                    /* the time has passed */
    STREAM_LOST,                    /* @why says how */
    STREAM_BREACH,                  /* the same: what came is no frame */
};

int64_t now_ms(void);

/* NULL, or what is wrong; errno is then set, or 0 */
const char *stream_connect(struct stream *stream, const char *path,
                           int64_t deadline);
void stream_close(struct stream *stream);
void stream_free(struct stream *stream);
/* False if the descriptor is another file's now: it was closed behind us */
bool stream_is_whole(const struct stream *stream);
/* Send @out */
enum stream_result stream_send(struct stream *stream, int64_t deadline,
                               const char **why);
/*
 * Send nothing more, and wait until the daemon has closed it too; what it
 * says meanwhile is dropped
 */
void stream_part(struct stream *stream, int64_t deadline);
/* The next frame; its payload stays until the next call */
enum stream_result stream_receive(struct stream *stream, int64_t deadline,
                                  struct header *header,
                                  struct reader *payload, const char **why);

#endif
