/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of a connection know of each other
 */
#ifndef CONN_H
#define CONN_H

#include "stream.h"

/* For words that are said in passing: to cancel, to part */
#define PARTING_MS          100

struct conn {
    enum conn_state state;
    struct stream stream;
    uint8_t instance[16];
    uint32_t connections;
    uint64_t seq;
    struct service service;
    uint64_t cancelling[HCLP_MAX_CANCELLING];
    unsigned cancelling_count;
};

/* conn.c: frames of ours, and how a connection ends */
struct frame *conn_begin(struct conn *conn, uint16_t type);
/* A frame that belongs to a call, or answers one that does */
struct frame *conn_begin_call(struct conn *conn, uint16_t type,
                              uint32_t request, uint64_t seq);
bool conn_finish(struct conn *conn, int64_t deadline, const char **why);
void conn_lose(struct conn *conn, const char *format, ...) PRINTF(2, 3);
void conn_breach(struct conn *conn, const char *frame, const char *why);
void conn_handle_goodbye(struct conn *conn, struct reader *payload);
const char *frame_name(uint16_t type);

/* A command that is being carried out */
struct waiting {
    struct command *command;        /* NULL: nothing is live */
    const struct announced *spec;
    int64_t deadline;
    int64_t status;
};

/* negotiate.c: makes it ready, and takes no other announcement later */
bool conn_handle_announce(struct conn *conn, struct waiting *waiting,
                          const struct header *header,
                          struct reader *payload);

/* command.c: false if the command was given up, or is none of ours */
bool conn_is_live(const struct conn *conn, const struct waiting *waiting,
                  const struct header *header);

/* serve.c: the index of the first segment that is bad, or @count */
unsigned segments_check(const struct command *command,
                        const struct segment *segments, unsigned count);
unsigned segments_check_mapped(const struct segment *segments,
                               unsigned count);
/* The same; those before it were written */
unsigned segments_write(const struct segment *segments, unsigned count);
bool conn_handle_read(struct conn *conn, struct waiting *waiting,
                      const struct header *header, struct reader *payload);
bool conn_handle_write(struct conn *conn, struct waiting *waiting,
                       const struct header *header, struct reader *payload);

#endif
