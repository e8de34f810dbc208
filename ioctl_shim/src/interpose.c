/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Calls by a descriptor: ioctl(), and those that close and copy descriptors
 *
 * Each looks whether it is meant, and is libc's otherwise: no lock, no
 * allocation, errno untouched. Calls by a path are in paths.c.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "next.h"
#include "shim.h"

static void __attribute__((constructor)) init(void)
{
    int saved = errno;

    next_init();
    fds_init();
    kvm_init();
    errno = saved;
}

/* ioctl */

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    void *arg;
    long result;
    int saved;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);

    if (!sev_ioctl_wanted(fd, request)) {
        return next.ioctl(fd, request, arg);
    }
    saved = errno;
    result = sev_ioctl(fd, request, arg);
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    errno = saved;
    return (int)result;
}

/* close */

EXPORT int close(int fd)
{
    int saved;

    if (fds_tracked(fd) && fds_are_ours()) {
        if (fds_is_socket(fd)) {
            /* Programs close what they did not open: it is not theirs */
            errno = EBADF;
            return -1;
        }
        saved = errno;
        fds_closed(fd);
        errno = saved;
    }
    return next.close(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    unsigned from = first;
    int fd, result = 0;

    if (flags || first > last || !fds_are_ours()) {
        return next.close_range(first, last, flags);
    }
    /* Nothing there: does the kernel know the call? It is of Linux 5.9 */
    if (next.close_range(UINT_MAX, UINT_MAX, 0) < 0) {
        return -1;
    }
    fds_closed_range(first, last);
    while ((fd = fds_next_socket(from, last)) >= 0) {
        if ((unsigned)fd > from) {
            result = next.close_range(from, (unsigned)fd - 1, flags);
        }
        if (result < 0) {
            return result;
        }
        from = (unsigned)fd + 1;
    }
    if (from <= last) {
        result = next.close_range(from, last, flags);
    }
    return result;
}

EXPORT void closefrom(int first)
{
    int saved = errno;

    first = first > 0 ? first : 0;
    if (close_range((unsigned)first, UINT_MAX, 0) < 0) {
        /* Libc has another way; it takes our sockets too, if they are ours */
        if (fds_are_ours()) {
            fds_closed_range((unsigned)first, UINT_MAX);
        }
        next.closefrom(first);
    }
    errno = saved;
}

/* dup: our sockets are left where they are, and noticed to be gone if not */

static int finish_copy(int from, int to)
{
    struct object *old;
    int saved = errno;

    old = to >= 0 && to != from ? fds_copy_locked(from, to) : NULL;
    fds_unlock();
    object_put(old);
    errno = saved;
    return to;
}

EXPORT int dup(int fd)
{
    if (!fds_tracked(fd) || !fds_are_ours()) {
        return next.dup(fd);
    }
    fds_lock();
    return finish_copy(fd, next.dup(fd));
}

EXPORT int dup2(int from, int to)
{
    if ((!fds_tracked(from) && !fds_tracked(to)) || !fds_are_ours()) {
        return next.dup2(from, to);
    }
    fds_lock();
    return finish_copy(from, next.dup2(from, to));
}

EXPORT int dup3(int from, int to, int flags)
{
    if ((!fds_tracked(from) && !fds_tracked(to)) || !fds_are_ours()) {
        return next.dup3(from, to, flags);
    }
    fds_lock();
    return finish_copy(from, next.dup3(from, to, flags));
}

static bool is_noted_copy(int fd, int command)
{
    return (command == F_DUPFD || command == F_DUPFD_CLOEXEC) &&
           fds_tracked(fd) && fds_are_ours();
}

EXPORT int fcntl(int fd, int command, ...)
{
    va_list args;
    void *arg;

    va_start(args, command);
    arg = va_arg(args, void *);
    va_end(args);
    if (!is_noted_copy(fd, command)) {
        return next.fcntl(fd, command, arg);
    }
    fds_lock();
    return finish_copy(fd, next.fcntl(fd, command, arg));
}

EXPORT int fcntl64(int fd, int command, ...)
{
    va_list args;
    void *arg;

    va_start(args, command);
    arg = va_arg(args, void *);
    va_end(args);
    if (!is_noted_copy(fd, command)) {
        return next.fcntl64(fd, command, arg);
    }
    fds_lock();
    return finish_copy(fd, next.fcntl64(fd, command, arg));
}
