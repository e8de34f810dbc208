/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Calls by a path: who opens a device, and who looks whether it is there
 *
 * Everybody else's are what they are: no lock, no allocation, errno untouched.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <sys/xattr.h>
#include <unistd.h>
#include "devices.h"
#include "next.h"

/*
 * Opening: who it is for is found out first, for the kernel would make a file
 * or open the host's own device. A bad pointer is the kernel's to refuse, and
 * no reason to crash.
 */
#define OPEN(path, flags, otherwise)                        \
    do {                                                    \
        int saved = errno;                                  \
        const struct device *device = device_at_any(path);  \
        errno = saved;                                      \
        return device ? device->open(flags) : (otherwise);  \
    } while (0)

/* The third parameter is there only if a file may be made */
#define MODE_OF(flags, mode)                                    \
    do {                                                        \
        if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
            va_list args;                                       \
            va_start(args, flags);                              \
            mode = va_arg(args, mode_t);                        \
            va_end(args);                                       \
        }                                                       \
    } while (0)

EXPORT int open(const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, mode);
    OPEN(path, flags, next.open(path, flags, mode));
}

EXPORT int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, mode);
    OPEN(path, flags, next.open64(path, flags, mode));
}

EXPORT int openat(int dir, const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, mode);
    OPEN(path, flags, next.openat(dir, path, flags, mode));
}

EXPORT int openat64(int dir, const char *path, int flags, ...)
{
    mode_t mode = 0;

    MODE_OF(flags, mode);
    OPEN(path, flags, next.openat64(dir, path, flags, mode));
}

/* As programs built with _FORTIFY_SOURCE call them, which pass no mode */
EXPORT int __open_2(const char *path, int flags)
{
    OPEN(path, flags, next.__open_2(path, flags));
}

EXPORT int __open64_2(const char *path, int flags)
{
    OPEN(path, flags, next.__open64_2(path, flags));
}

EXPORT int __openat_2(int dir, const char *path, int flags)
{
    OPEN(path, flags, next.__openat_2(dir, path, flags));
}

EXPORT int __openat64_2(int dir, const char *path, int flags)
{
    OPEN(path, flags, next.__openat64_2(dir, path, flags));
}

/*
 * Looking: programs do it often, and the kernel changes nothing, so it is
 * asked first. These results say that it has read the path; or it is NULL,
 * which newer kernels take with AT_EMPTY_PATH, and libc's headers deny.
 */
static bool is_made_up(ssize_t result, const char *volatile path)
{
    return (result >= 0 || errno == ENOENT || errno == EACCES) && path &&
           device_at(path);
}

#define LOOK(type, name, parameters, arguments, change) \
    EXPORT type name parameters                         \
    {                                                   \
        int saved = errno;                              \
        type result = next.name arguments;              \
                                                        \
        if (is_made_up(result, path)) {                 \
            errno = saved;                              \
            path = STAND_IN;                            \
            result = next.name arguments;               \
            change                                      \
        }                                               \
        return result;                                  \
    }

#define NOTHING

/* The number stays: a copy that mknod() makes by it is good for nothing */
#define OWN(prefix)                                     \
    if (result == 0) {                                  \
        status->prefix##mode = S_IFCHR | DEVICE_MODE;   \
        status->prefix##uid = geteuid();                \
        status->prefix##gid = getegid();                \
    }

LOOK(int, access, (const char *path, int mode), (path, mode), NOTHING)
LOOK(int, euidaccess, (const char *path, int mode), (path, mode), NOTHING)
LOOK(int, eaccess, (const char *path, int mode), (path, mode), NOTHING)
LOOK(int, faccessat,
     (int dir, const char *path, int mode, int flags),
     (dir, path, mode, flags), NOTHING)

LOOK(int, stat,
     (const char *path, struct stat *status),
     (path, status), OWN(st_))
LOOK(int, stat64,
     (const char *path, struct stat64 *status),
     (path, status), OWN(st_))
LOOK(int, lstat,
     (const char *path, struct stat *status),
     (path, status), OWN(st_))
LOOK(int, lstat64,
     (const char *path, struct stat64 *status),
     (path, status), OWN(st_))
LOOK(int, fstatat,
     (int dir, const char *path, struct stat *status, int flags),
     (dir, path, status, flags), OWN(st_))
LOOK(int, fstatat64,
     (int dir, const char *path, struct stat64 *status, int flags),
     (dir, path, status, flags), OWN(st_))
LOOK(int, statx,
     (int dir, const char *path, int flags, unsigned mask,
      struct statx *status),
     (dir, path, flags, mask, status), OWN(stx_))

/* ls -l */
LOOK(ssize_t, getxattr,
     (const char *path, const char *name, void *value, size_t size),
     (path, name, value, size), NOTHING)
LOOK(ssize_t, lgetxattr,
     (const char *path, const char *name, void *value, size_t size),
     (path, name, value, size), NOTHING)
LOOK(ssize_t, listxattr,
     (const char *path, char *list, size_t size),
     (path, list, size), NOTHING)
LOOK(ssize_t, llistxattr,
     (const char *path, char *list, size_t size),
     (path, list, size), NOTHING)

/* As programs call them that were built before glibc 2.33 */
LOOK(int, __xstat,
     (int version, const char *path, struct stat *status),
     (version, path, status), OWN(st_))
LOOK(int, __xstat64,
     (int version, const char *path, struct stat64 *status),
     (version, path, status), OWN(st_))
LOOK(int, __lxstat,
     (int version, const char *path, struct stat *status),
     (version, path, status), OWN(st_))
LOOK(int, __lxstat64,
     (int version, const char *path, struct stat64 *status),
     (version, path, status), OWN(st_))
LOOK(int, __fxstatat,
     (int version, int dir, const char *path, struct stat *status, int flags),
     (version, dir, path, status, flags), OWN(st_))
LOOK(int, __fxstatat64,
     (int version, int dir, const char *path, struct stat64 *status,
      int flags),
     (version, dir, path, status, flags), OWN(st_))
