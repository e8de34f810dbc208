/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The functions that the library stands before, as they are without it
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "next.h"

/* On x86-64 both structures are the kernel's (struct stat of asm/stat.h) */
_Static_assert(sizeof(struct stat) == 144 &&
               sizeof(struct stat64) == 144, "asm/stat.h");

/* The version of __xstat(): _STAT_VER_KERNEL and _STAT_VER_LINUX of glibc */
#define MAX_STAT_VERSION 1

/* A word after the last named parameter, which may not have been passed */
#define LAST(last, word)                \
    do {                                \
        va_list args;                   \
        va_start(args, last);           \
        word = va_arg(args, uintptr_t); \
        va_end(args);                   \
    } while (0)

static int kernel_ioctl(int fd, unsigned long request, ...)
{
    uintptr_t arg;

    LAST(request, arg);
    return (int)syscall(SYS_ioctl, fd, request, arg);
}

static int kernel_openat(int dir, const char *path, int flags, ...)
{
    uintptr_t mode;

    LAST(flags, mode);
    return (int)syscall(SYS_openat, dir, path, flags, (mode_t)mode);
}

static int kernel_open(const char *path, int flags, ...)
{
    uintptr_t mode;

    LAST(flags, mode);
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, (mode_t)mode);
}

static int kernel_openat_2(int dir, const char *path, int flags)
{
    return (int)syscall(SYS_openat, dir, path, flags, 0);
}

static int kernel_open_2(const char *path, int flags)
{
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0);
}

static int kernel_close(int fd)
{
    return (int)syscall(SYS_close, fd);
}

static int kernel_close_range(unsigned first, unsigned last, int flags)
{
    return (int)syscall(SYS_close_range, first, last, flags);
}

static void kernel_closefrom(int first)
{
    kernel_close_range((unsigned)first, UINT_MAX, 0);
}

static int kernel_dup(int fd)
{
    return (int)syscall(SYS_dup, fd);
}

static int kernel_dup2(int from, int to)
{
    return (int)syscall(SYS_dup2, from, to);
}

static int kernel_dup3(int from, int to, int flags)
{
    return (int)syscall(SYS_dup3, from, to, flags);
}

static int kernel_fcntl(int fd, int command, ...)
{
    uintptr_t arg;

    LAST(command, arg);
    return (int)syscall(SYS_fcntl, fd, command, arg);
}

static int kernel_access(const char *path, int mode)
{
    return (int)syscall(SYS_access, path, mode);
}

static int kernel_faccessat(int dir, const char *path, int mode, int flags)
{
    return flags ? (int)syscall(SYS_faccessat2, dir, path, mode, flags) :
           (int)syscall(SYS_faccessat, dir, path, mode);
}

static int kernel_euidaccess(const char *path, int mode)
{
    return kernel_faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}

static int kernel_fstatat(int dir, const char *path, struct stat *status,
                          int flags)
{
    return (int)syscall(SYS_newfstatat, dir, path, status, flags);
}

static int kernel_fstatat64(int dir, const char *path, struct stat64 *status,
                            int flags)
{
    return (int)syscall(SYS_newfstatat, dir, path, status, flags);
}

static int kernel_stat(const char *path, struct stat *status)
{
    return kernel_fstatat(AT_FDCWD, path, status, 0);
}

static int kernel_stat64(const char *path, struct stat64 *status)
{
    return kernel_fstatat64(AT_FDCWD, path, status, 0);
}

static int kernel_lstat(const char *path, struct stat *status)
{
    return kernel_fstatat(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}

static int kernel_lstat64(const char *path, struct stat64 *status)
{
    return kernel_fstatat64(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}

static int kernel_statx(int dir, const char *path, int flags, unsigned mask,
                        struct statx *status)
{
    return (int)syscall(SYS_statx, dir, path, flags, mask, status);
}

static ssize_t kernel_getxattr(const char *path, const char *name,
                               void *value, size_t size)
{
    return syscall(SYS_getxattr, path, name, value, size);
}

static ssize_t kernel_lgetxattr(const char *path, const char *name,
                                void *value, size_t size)
{
    return syscall(SYS_lgetxattr, path, name, value, size);
}

static ssize_t kernel_listxattr(const char *path, char *list, size_t size)
{
    return syscall(SYS_listxattr, path, list, size);
}

static ssize_t kernel_llistxattr(const char *path, char *list, size_t size)
{
    return syscall(SYS_llistxattr, path, list, size);
}

/*
 * Programs built before glibc 2.33 call these; dlsym() does not find them in
 * a later one, which has them for such programs only.
 */
static bool is_stat_version(int version)
{
    if (version < 0 || version > MAX_STAT_VERSION) {
        errno = EINVAL;
        return false;
    }
    return true;
}

static int old_xstat(int version, const char *path, struct stat *status)
{
    return is_stat_version(version) ? next.stat(path, status) : -1;
}

static int old_xstat64(int version, const char *path, struct stat64 *status)
{
    return is_stat_version(version) ? next.stat64(path, status) : -1;
}

static int old_lxstat(int version, const char *path, struct stat *status)
{
    return is_stat_version(version) ? next.lstat(path, status) : -1;
}

static int old_lxstat64(int version, const char *path, struct stat64 *status)
{
    return is_stat_version(version) ? next.lstat64(path, status) : -1;
}

static int old_fxstatat(int version, int dir, const char *path,
                        struct stat *status, int flags)
{
    return is_stat_version(version) ?
           next.fstatat(dir, path, status, flags) : -1;
}

static int old_fxstatat64(int version, int dir, const char *path,
                          struct stat64 *status, int flags)
{
    return is_stat_version(version) ?
           next.fstatat64(dir, path, status, flags) : -1;
}

/* X(name, what is called where there is none of that name) */
#define FUNCTIONS(X)                     \
    X(ioctl, kernel_ioctl)               \
    X(open, kernel_open)                 \
    X(open64, kernel_open)               \
    X(openat, kernel_openat)             \
    X(openat64, kernel_openat)           \
    X(__open_2, kernel_open_2)           \
    X(__open64_2, kernel_open_2)         \
    X(__openat_2, kernel_openat_2)       \
    X(__openat64_2, kernel_openat_2)     \
    X(close, kernel_close)               \
    X(close_range, kernel_close_range)   \
    X(closefrom, kernel_closefrom)       \
    X(dup, kernel_dup)                   \
    X(dup2, kernel_dup2)                 \
    X(dup3, kernel_dup3)                 \
    X(fcntl, kernel_fcntl)               \
    X(fcntl64, kernel_fcntl)             \
    X(access, kernel_access)             \
    X(euidaccess, kernel_euidaccess)     \
    X(eaccess, kernel_euidaccess)        \
    X(faccessat, kernel_faccessat)       \
    X(stat, kernel_stat)                 \
    X(stat64, kernel_stat64)             \
    X(lstat, kernel_lstat)               \
    X(lstat64, kernel_lstat64)           \
    X(fstatat, kernel_fstatat)           \
    X(fstatat64, kernel_fstatat64)       \
    X(statx, kernel_statx)               \
    X(getxattr, kernel_getxattr)         \
    X(lgetxattr, kernel_lgetxattr)       \
    X(listxattr, kernel_listxattr)       \
    X(llistxattr, kernel_llistxattr)     \
    X(__xstat, old_xstat)                \
    X(__xstat64, old_xstat64)            \
    X(__lxstat, old_lxstat)              \
    X(__lxstat64, old_lxstat64)          \
    X(__fxstatat, old_fxstatat)          \
    X(__fxstatat64, old_fxstatat64)

struct next next = {
#define FALLBACK(name, function) .name = function,
    FUNCTIONS(FALLBACK)
#undef FALLBACK
};

static void find(const char *name, void *function, size_t size)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (found) {
        memcpy(function, &found, size);
    }
}

void next_init(void)
{
#define FIND(name, function) find(#name, &next.name, sizeof(next.name));
    FUNCTIONS(FIND)
#undef FIND
}
