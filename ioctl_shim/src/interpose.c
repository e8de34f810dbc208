/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The functions of libc that the library stands before
 *
 * Each looks whether it is meant, and is libc's otherwise: no lock, no
 * allocation, errno untouched.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "shim.h"

#define EXPORT __attribute__((visibility("default")))

#define SEV_DEVICE "/dev/sev"
#define KVM_DEVICE "/dev/kvm"

#ifndef __x86_64__
#error "only x86-64 has SEV; 32-bit programs have other structures"
#endif

/* The next library's, or NULL before ours is initialized */
static int (*libc_ioctl)(int, unsigned long, ...);
static int (*libc_openat)(int, const char *, int, ...);
static int (*libc_close)(int);
static int (*libc_dup)(int);
static int (*libc_dup2)(int, int);
static int (*libc_dup3)(int, int, int);
static int (*libc_fcntl)(int, int, ...);
static int (*libc_close_range)(unsigned, unsigned, int);

static void __attribute__((constructor)) init(void)
{
    int saved = errno;

    libc_ioctl = dlsym(RTLD_NEXT, "ioctl");
    libc_openat = dlsym(RTLD_NEXT, "openat");
    libc_close = dlsym(RTLD_NEXT, "close");
    libc_dup = dlsym(RTLD_NEXT, "dup");
    libc_dup2 = dlsym(RTLD_NEXT, "dup2");
    libc_dup3 = dlsym(RTLD_NEXT, "dup3");
    libc_fcntl = dlsym(RTLD_NEXT, "fcntl");
    libc_close_range = dlsym(RTLD_NEXT, "close_range");
    fds_init();
    kvm_init();
    errno = saved;
}

/* Other libraries' constructors may come before ours: the kernel then */
int next_ioctl(int fd, unsigned long request, void *arg)
{
    return libc_ioctl ? libc_ioctl(fd, request, arg) :
           (int)syscall(SYS_ioctl, fd, request, arg);
}

int next_close(int fd)
{
    return libc_close ? libc_close(fd) : (int)syscall(SYS_close, fd);
}

static int next_openat(int dir, const char *path, int flags, mode_t mode)
{
    return libc_openat ? libc_openat(dir, path, flags, mode) :
           (int)syscall(SYS_openat, dir, path, flags, mode);
}

static int next_dup(int fd)
{
    return libc_dup ? libc_dup(fd) : (int)syscall(SYS_dup, fd);
}

static int next_dup2(int from, int to)
{
    return libc_dup2 ? libc_dup2(from, to) : (int)syscall(SYS_dup2, from, to);
}

static int next_dup3(int from, int to, int flags)
{
    return libc_dup3 ? libc_dup3(from, to, flags) :
           (int)syscall(SYS_dup3, from, to, flags);
}

int next_fcntl(int fd, int command, void *arg)
{
    return libc_fcntl ? libc_fcntl(fd, command, arg) :
           (int)syscall(SYS_fcntl, fd, command, arg);
}

static int next_close_range(unsigned first, unsigned last, int flags)
{
    return libc_close_range ? libc_close_range(first, last, flags) :
           (int)syscall(SYS_close_range, first, last, flags);
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
        return next_ioctl(fd, request, arg);
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

/* open */

/*
 * The descriptor of a device that is not there: it can be passed around and
 * closed, and knows how it was opened.
 */
static int open_device(int flags)
{
    struct object *object;
    int fd = next_openat(AT_FDCWD, "/dev/null",
                         flags & (O_ACCMODE | O_CLOEXEC | O_NONBLOCK), 0);

    /* What a child by vfork() opens is not to be noted in its parent's table */
    if (fd < 0 || !fds_are_ours()) {
        return fd;
    }
    object = object_new(FD_SEV);
    if (!object || !fds_add(fd, object)) {
        next_close(fd);
        errno = ENOMEM;
        return -1;
    }
    return fd;
}

static int open_any(int dir, const char *path, int flags, mode_t mode)
{
    char start[sizeof(SEV_DEVICE)];
    int saved = errno;

    _Static_assert(sizeof(SEV_DEVICE) == sizeof(KVM_DEVICE), "one is read");

    /* A bad pointer is the kernel's to refuse, and no reason to crash */
    if (memory_read(start, (uintptr_t)path, sizeof(start))) {
        if (memcmp(start, SEV_DEVICE, sizeof(start)) == 0) {
            return open_device(flags);
        }
        if (memcmp(start, KVM_DEVICE, sizeof(start)) == 0 && kvm_is_fake()) {
            return kvm_open_fake(flags);
        }
    }
    errno = saved;
    return next_openat(dir, path, flags, mode);
}

#define MODE_OF(flags, last, mode)                              \
    do {                                                        \
        if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
            va_list args;                                       \
            va_start(args, last);                               \
            mode = va_arg(args, mode_t);                        \
            va_end(args);                                       \
        }                                                       \
    } while (0)

EXPORT int open(const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, flags, mode);
    return open_any(AT_FDCWD, path, flags, mode);
}

EXPORT int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, flags, mode);
    return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

EXPORT int openat(int dir, const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, flags, mode);
    return open_any(dir, path, flags, mode);
}

EXPORT int openat64(int dir, const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, flags, mode);
    return open_any(dir, path, flags | O_LARGEFILE, mode);
}

/* As programs built with _FORTIFY_SOURCE call them, which pass no mode */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);

EXPORT int __open_2(const char *path, int flags)
{
    return open_any(AT_FDCWD, path, flags, 0);
}

EXPORT int __open64_2(const char *path, int flags)
{
    return open_any(AT_FDCWD, path, flags | O_LARGEFILE, 0);
}

EXPORT int __openat_2(int dir, const char *path, int flags)
{
    return open_any(dir, path, flags, 0);
}

EXPORT int __openat64_2(int dir, const char *path, int flags)
{
    return open_any(dir, path, flags | O_LARGEFILE, 0);
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
    return next_close(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    unsigned from = first;
    int fd, result = 0;

    if (flags || first > last || !fds_are_ours()) {
        return next_close_range(first, last, flags);
    }
    fds_closed_range(first, last);
    while ((fd = fds_next_socket(from, last)) >= 0) {
        if ((unsigned)fd > from) {
            result = next_close_range(from, (unsigned)fd - 1, flags);
        }
        if (result < 0) {
            return result;
        }
        from = (unsigned)fd + 1;
    }
    if (from <= last) {
        result = next_close_range(from, last, flags);
    }
    return result;
}

EXPORT void closefrom(int first)
{
    close_range(first > 0 ? (unsigned)first : 0, UINT_MAX, 0);
}

/* dup: our sockets are left where they are, and noticed to be gone if not */

static int finish_copy(int from, int to)
{
    struct object *old;
    int saved = errno;

    old = to >= 0 && to != from ? fds_copy_locked(from, to) : NULL;
    fds_unlock();
    fds_put(old);
    errno = saved;
    return to;
}

EXPORT int dup(int fd)
{
    if (!fds_tracked(fd) || !fds_are_ours()) {
        return next_dup(fd);
    }
    fds_lock();
    return finish_copy(fd, next_dup(fd));
}

EXPORT int dup2(int from, int to)
{
    if ((!fds_tracked(from) && !fds_tracked(to)) || !fds_are_ours()) {
        return next_dup2(from, to);
    }
    fds_lock();
    return finish_copy(from, next_dup2(from, to));
}

EXPORT int dup3(int from, int to, int flags)
{
    if ((!fds_tracked(from) && !fds_tracked(to)) || !fds_are_ours()) {
        return next_dup3(from, to, flags);
    }
    fds_lock();
    return finish_copy(from, next_dup3(from, to, flags));
}

static int fcntl_any(int fd, int command, void *arg)
{
    if ((command != F_DUPFD && command != F_DUPFD_CLOEXEC) ||
        !fds_tracked(fd) || !fds_are_ours()) {
        return next_fcntl(fd, command, arg);
    }
    fds_lock();
    return finish_copy(fd, next_fcntl(fd, command, arg));
}

EXPORT int fcntl(int fd, int command, ...)
{
    va_list args;
    void *arg;

    va_start(args, command);
    arg = va_arg(args, void *);
    va_end(args);
    return fcntl_any(fd, command, arg);
}

EXPORT int fcntl64(int fd, int command, ...)
{
    va_list args;
    void *arg;

    va_start(args, command);
    arg = va_arg(args, void *);
    va_end(args);
    return fcntl_any(fd, command, arg);
}
