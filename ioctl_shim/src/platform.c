/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The process's own connection: /dev/sev has no state of its own, so all
 * descriptors of it share one, and a lost one is made anew.
 */

#include <errno.h>
#include "shim.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct conn *conn;

static bool make_ready(void)
{
    if (!conn) {
        conn = conn_new();
    }
    if (!conn) {
        return false;
    }
    if (conn_state(conn) == CONN_READY) {
        conn_check(conn);
    }
    if (conn_state(conn) == CONN_LOST) {
        conn_reset(conn);
    }
    return conn_open(conn);
}

int64_t platform_call(struct command *command)
{
    int64_t status = -ENODEV;

    pthread_mutex_lock(&lock);
    if (make_ready()) {
        status = conn_call(conn, command);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* In a child; what another thread of the parent did with it is unknown */
void platform_abandon(void)
{
    pthread_mutex_init(&lock, NULL);
    conn = NULL;
}
