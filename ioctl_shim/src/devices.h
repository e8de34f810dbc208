/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices that this host need not have
 */
#ifndef DEVICES_H
#define DEVICES_H

#include "shim.h"

/* What they are in place of: everybody may open it, and nothing comes of it */
#define STAND_IN    "/dev/null"

/* What stat() says of them beside that; they are the program's own */
#define DEVICE_MODE 0600

struct device {
    char path[sizeof("/dev/sev")];
    bool (*is_there)(void);         /* or it is whatever the host has */
    int (*open)(int flags);
};

/* NULL: the path is none of ours. This one must be mapped as far as its NUL */
const struct device *device_at(const char *path);
/* This one may be any address */
const struct device *device_at_any(const char *path);

#endif
