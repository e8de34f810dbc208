/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames over a unix socket, each within a time
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "next.h"
#include "stream.h"

/* Out of the way of programs that count on low numbers, if there is room */
#define LOWEST_FD 900L

/* Those that have a descriptor, under the lock of fds.c */
static struct stream *open_streams;

int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* False when the time has passed */
static bool wait_for(int fd, short events, int64_t deadline)
{
    for (;;) {
        struct pollfd entry = { .fd = fd, .events = events };
        int64_t left = deadline - now_ms();
        int n;

        if (left <= 0) {
            return false;
        }
        n = poll(&entry, 1, left > INT_MAX ? INT_MAX : (int)left);
        if (n > 0 || (n < 0 && errno != EINTR)) {
            return true;
        }
    }
}

static bool nap(int64_t deadline)
{
    struct timespec pause = { .tv_nsec = 10000000 };

    nanosleep(&pause, NULL);
    return now_ms() < deadline;
}

/* -1: none can be made */
static int make_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int moved;

    if (fd < 0) {
        return -1;
    }
    moved = next.fcntl(fd, F_DUPFD_CLOEXEC, (void *)LOWEST_FD);
    if (moved < 0) {
        return fd;
    }
    next.close(fd);
    return moved;
}

/*
 * From the first moment on, a fork finds the socket among those that its child
 * has to close: the daemon keeps a guest for as long as anybody has it open.
 */
static bool open_socket(struct stream *stream)
{
    struct object *old = NULL;
    struct stat status;
    int fd;

    fds_lock();
    fd = make_socket();
    if (fd >= 0 && fstat(fd, &status) < 0) {
        next.close(fd);
        fd = -1;
    }
    if (fd >= 0) {
        stream->fd = fd;
        stream->dev = status.st_dev;
        stream->ino = status.st_ino;
        stream->in_used = 0;
        stream->next = open_streams;
        open_streams = stream;
        old = fds_add_socket_locked(fd);
    }
    fds_unlock();
    object_put(old);
    return fd >= 0;
}

const char *stream_connect(struct stream *stream, const char *path,
                           int64_t deadline)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int saved;

    errno = 0;
    if (strlen(path) >= sizeof(address.sun_path)) {
        return "its path is longer than 107 bytes";
    }
    strcpy(address.sun_path, path);
    if (!open_socket(stream)) {
        return "no socket can be made";
    }
    /* EAGAIN: the daemon has not accepted those before us yet */
    while (connect(stream->fd, (struct sockaddr *)&address,
                   sizeof(address)) < 0) {
        if (errno == EINTR || (errno == EAGAIN && nap(deadline))) {
            continue;
        }
        saved = errno;
        stream_close(stream);
        errno = saved;
        return "cannot connect";
    }
    return NULL;
}

bool stream_is_whole(const struct stream *stream)
{
    struct stat status;

    return fstat(stream->fd, &status) == 0 && S_ISSOCK(status.st_mode) &&
           status.st_dev == stream->dev && status.st_ino == stream->ino;
}

/* Whoever closed it behind us may have opened something else in its place */
static void close_if_whole(struct stream *stream)
{
    if (stream_is_whole(stream)) {
        next.close(stream->fd);
    }
    stream->fd = -1;
}

void stream_close(struct stream *stream)
{
    struct stream **link = &open_streams;

    if (stream->fd < 0) {
        return;
    }
    fds_lock();
    while (*link != stream) {
        link = &(*link)->next;
    }
    *link = stream->next;
    fds_remove_socket_locked(stream->fd);
    close_if_whole(stream);
    fds_unlock();
}

void streams_abandon(void)
{
    struct stream *stream;

    for (stream = open_streams; stream; stream = stream->next) {
        close_if_whole(stream);
    }
    open_streams = NULL;
}

void stream_free(struct stream *stream)
{
    stream_close(stream);
    free(stream->out.data);
    free(stream->in);
}

void stream_part(struct stream *stream, int64_t deadline)
{
    uint8_t dropped[4096];

    /* A child may still have a copy: closing ours would say nothing then */
    shutdown(stream->fd, SHUT_WR);
    while (now_ms() < deadline) {
        ssize_t n = recv(stream->fd, dropped, sizeof(dropped), MSG_DONTWAIT);

        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            return;
        }
        if (n < 0 && errno == EAGAIN) {
            wait_for(stream->fd, POLLIN, deadline);
        }
    }
}

static const char *error_text(void)
{
    return errno == EPIPE || errno == ECONNRESET ?
           "the daemon has closed it" : strerror(errno);
}

enum stream_result stream_send(struct stream *stream, int64_t deadline,
                               const char **why)
{
    struct frame *frame = &stream->out;
    size_t sent = 0;

    if (frame->failed) {
        *why = "there is no memory for a frame";
        return STREAM_LOST;
    }
    while (sent < frame->size) {
        ssize_t n = send(stream->fd, frame->data + sent, frame->size - sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno == EAGAIN) {
            if (!wait_for(stream->fd, POLLOUT, deadline)) {
                /* Half a frame is on its way: there is no going on */
                *why = "the daemon does not read";
                return STREAM_LOST;
            }
        } else if (errno != EINTR) {
            *why = error_text();
            return STREAM_LOST;
        }
    }
    return STREAM_OK;
}

/* Read until @size bytes of the frame are there */
static enum stream_result fill(struct stream *stream, size_t size,
                               int64_t deadline, const char **why)
{
    if (size > stream->in_room) {
        uint8_t *in = realloc(stream->in, size);

        if (!in) {
            *why = "there is no memory for a frame";
            return STREAM_LOST;
        }
        stream->in = in;
        stream->in_room = size;
    }
    while (stream->in_used < size) {
        ssize_t n = recv(stream->fd, stream->in + stream->in_used,
                         size - stream->in_used, MSG_DONTWAIT);

        if (n > 0) {
            stream->in_used += (size_t)n;
        } else if (n == 0) {
            *why = "the daemon has closed it";
            return STREAM_LOST;
        } else if (errno == EAGAIN) {
            if (!wait_for(stream->fd, POLLIN, deadline)) {
                return STREAM_LATE;
            }
        } else if (errno != EINTR) {
            *why = error_text();
            return STREAM_LOST;
        }
    }
    return STREAM_OK;
}

enum stream_result stream_receive(struct stream *stream, int64_t deadline,
                                  struct header *header,
                                  struct reader *payload, const char **why)
{
    enum stream_result result = fill(stream, HCLP_HEADER_SIZE, deadline, why);

    if (result != STREAM_OK) {
        return result;
    }
    if (!parse_header(stream->in, header, why)) {
        return STREAM_BREACH;
    }
    if (header->size > stream->max_frame) {
        *why = "it is larger than was agreed";
        return STREAM_BREACH;
    }
    result = fill(stream, header->size, deadline, why);
    if (result == STREAM_OK) {
        *payload = (struct reader) {
            .p = stream->in + HCLP_HEADER_SIZE,
            .left = header->size - HCLP_HEADER_SIZE,
        };
        stream->in_used = 0;
    }
    return result;
}
