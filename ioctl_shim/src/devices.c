/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices that this host need not have
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include "devices.h"
#include "next.h"

/*
 * The descriptor of a device that is not there: it can be passed around and
 * closed, and knows how it was opened.
 */
static int open_sev(int flags)
{
    struct object *object;
    int fd = next.openat(AT_FDCWD, STAND_IN, flags, 0);

    /* What a child by vfork() opens is not to be noted in its parent's table */
    if (fd < 0 || !fds_are_ours()) {
        return fd;
    }
    object = object_new(FD_SEV);
    if (!object || !fds_add(fd, object)) {
        next.close(fd);
        errno = ENOMEM;
        return -1;
    }
    return fd;
}

/* The host's own is never used: it has other keys, and may be in use */
static bool always(void)
{
    return true;
}

static const struct device devices[] = {
    { "/dev/sev", always, open_sev },
    { "/dev/kvm", kvm_is_fake, kvm_open_fake },
};

const struct device *device_at(const char *path)
{
    unsigned i;

    for (i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        if (strcmp(path, devices[i].path) == 0 && devices[i].is_there()) {
            return &devices[i];
        }
    }
    return NULL;
}

const struct device *device_at_any(const char *path)
{
    char start[sizeof(devices[0].path)];

    if (!memory_peek(start, path, sizeof(start)) ||
        start[sizeof(start) - 1]) {
        return NULL;
    }
    return device_at(start);
}
