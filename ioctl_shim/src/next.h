/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The functions that the library stands before, as they are without it
 *
 * Another preloaded library may come next, so each is called by the name by
 * which the program called ours.
 */
#ifndef NEXT_H
#define NEXT_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>

#if !defined(__x86_64__) || !defined(__LP64__)
#error "only x86-64 has SEV; 32-bit programs have other structures"
#endif

struct stat64;                      /* of _GNU_SOURCE */
struct statx;

struct next {
    int (*ioctl)(int, unsigned long, ...);

    int (*open)(const char *, int, ...);
    int (*open64)(const char *, int, ...);
    int (*openat)(int, const char *, int, ...);
    int (*openat64)(int, const char *, int, ...);
    int (*__open_2)(const char *, int);
    int (*__open64_2)(const char *, int);
    int (*__openat_2)(int, const char *, int);
    int (*__openat64_2)(int, const char *, int);

    int (*close)(int);
    int (*close_range)(unsigned, unsigned, int);
    void (*closefrom)(int);
    int (*dup)(int);
    int (*dup2)(int, int);
    int (*dup3)(int, int, int);
    int (*fcntl)(int, int, ...);
    int (*fcntl64)(int, int, ...);

    int (*access)(const char *, int);
    int (*euidaccess)(const char *, int);
    int (*eaccess)(const char *, int);
    int (*faccessat)(int, const char *, int, int);
    int (*stat)(const char *, struct stat *);
    int (*stat64)(const char *, struct stat64 *);
    int (*lstat)(const char *, struct stat *);
    int (*lstat64)(const char *, struct stat64 *);
    int (*fstatat)(int, const char *, struct stat *, int);
    int (*fstatat64)(int, const char *, struct stat64 *, int);
    int (*statx)(int, const char *, int, unsigned, struct statx *);
    ssize_t (*getxattr)(const char *, const char *, void *, size_t);
    ssize_t (*lgetxattr)(const char *, const char *, void *, size_t);
    ssize_t (*listxattr)(const char *, char *, size_t);
    ssize_t (*llistxattr)(const char *, char *, size_t);
    int (*__xstat)(int, const char *, struct stat *);
    int (*__xstat64)(int, const char *, struct stat64 *);
    int (*__lxstat)(int, const char *, struct stat *);
    int (*__lxstat64)(int, const char *, struct stat64 *);
    int (*__fxstatat)(int, int, const char *, struct stat *, int);
    int (*__fxstatat64)(int, int, const char *, struct stat64 *, int);
};

/* Those of them that libc's headers need not declare */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);
int __xstat(int version, const char *path, struct stat *status);
int __xstat64(int version, const char *path, struct stat64 *status);
int __lxstat(int version, const char *path, struct stat *status);
int __lxstat64(int version, const char *path, struct stat64 *status);
int __fxstatat(int version, int dir, const char *path, struct stat *status,
               int flags);
int __fxstatat64(int version, int dir, const char *path,
                 struct stat64 *status, int flags);

/*
 * Never NULL: the kernel's system calls before ours is initialized (another
 * library's constructor may come first), and where libc has no such function
 */
extern struct next next;

void next_init(void);

#endif
