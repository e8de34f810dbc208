/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which descriptors are VMs, vCPUs, stand-ins and sockets of ours
 *
 * Looking whether a descriptor is one of them takes no lock and allocates
 * nothing, so that close() and dup2() stay what they are for everybody else,
 * in signal handlers and after fork() too. Changes are made under one lock,
 * which no call to the daemon is made with.
 */

#include <stdlib.h>
#include <unistd.h>
#include "shim.h"

#define CHUNK_BITS  10
#define CHUNK_SIZE  (1u << CHUNK_BITS)
#define CHUNKS      1024u           /* descriptors up to fs.nr_open's default */
#define MAX_FD      (CHUNKS * CHUNK_SIZE)

typedef _Atomic(struct object *) slot_t;

static _Atomic(slot_t *) chunks[CHUNKS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t owner;
/* Stands in the slots of sockets; only its address counts */
static struct object socket_mark = { .kind = FD_SOCKET };

static slot_t *slot_of(int fd)
{
    slot_t *chunk;

    if (fd < 0 || (unsigned)fd >= MAX_FD) {
        return NULL;
    }
    chunk = atomic_load(&chunks[(unsigned)fd >> CHUNK_BITS]);
    return chunk ? &chunk[(unsigned)fd & (CHUNK_SIZE - 1)] : NULL;
}

static slot_t *make_slot(int fd)
{
    slot_t *chunk;

    if (fd < 0 || (unsigned)fd >= MAX_FD) {
        shim_error("descriptor %d is above %u, the greatest that can be"
                   " followed", fd, MAX_FD - 1);
        return NULL;
    }
    if (!atomic_load(&chunks[(unsigned)fd >> CHUNK_BITS])) {
        chunk = calloc(CHUNK_SIZE, sizeof(*chunk));
        if (!chunk) {
            return NULL;
        }
        atomic_store(&chunks[(unsigned)fd >> CHUNK_BITS], chunk);
    }
    return slot_of(fd);
}

bool fds_tracked(int fd)
{
    slot_t *slot = slot_of(fd);

    return slot && atomic_load(slot);
}

bool fds_is_socket(int fd)
{
    slot_t *slot = slot_of(fd);

    return slot && atomic_load(slot) == &socket_mark;
}

bool fds_are_ours(void)
{
    return getpid() == owner;
}

void fds_lock(void)
{
    pthread_mutex_lock(&lock);
}

void fds_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

/* The lowest slot in use from @fd on, or -1 */
static int next_used(unsigned fd, unsigned last)
{
    for (; fd <= last && fd < MAX_FD; fd++) {
        slot_t *chunk = atomic_load(&chunks[fd >> CHUNK_BITS]);

        if (!chunk) {
            fd |= CHUNK_SIZE - 1;
        } else if (atomic_load(&chunk[fd & (CHUNK_SIZE - 1)])) {
            return (int)fd;
        }
    }
    return -1;
}

/* With the lock held: a vCPU's descriptor is gone. Has it another? */
static void lost_locked(int fd, struct object *object)
{
    if (!object || object->kind != FD_VCPU || object->fd != fd) {
        return;
    }
    for (fd = next_used(0, MAX_FD - 1); fd >= 0;
         fd = next_used((unsigned)fd + 1, MAX_FD - 1)) {
        if (atomic_load(slot_of(fd)) == object) {
            break;
        }
    }
    object->fd = fd;
}

bool fds_add(int fd, struct object *object)
{
    struct object *old;
    slot_t *slot;

    fds_lock();
    slot = make_slot(fd);
    if (!slot) {
        fds_unlock();
        object_put(object);
        return false;
    }
    /* There is an old one if it was closed by a way that we do not see */
    old = atomic_exchange(slot, object);
    lost_locked(fd, old);
    fds_unlock();
    object_put(old);
    return true;
}

struct vm *fds_adopt(int fd, struct vm *vm)
{
    struct object *old = NULL;
    struct vm *found;
    slot_t *slot;

    fds_lock();
    slot = make_slot(fd);
    found = slot ? vm_of(atomic_load(slot)) : NULL;
    if (slot && !found) {
        old = atomic_exchange(slot, &vm->object);
        lost_locked(fd, old);
        found = vm;
    }
    if (found) {
        object_get_locked(&found->object);
    }
    fds_unlock();
    object_put(found == vm ? old : &vm->object);
    return found;
}

struct object *fds_get(int fd)
{
    struct object *object;
    slot_t *slot = slot_of(fd);

    if (!slot || !atomic_load(slot) || !fds_are_ours()) {
        return NULL;
    }
    fds_lock();
    object = atomic_load(slot);
    if (object == &socket_mark) {
        object = NULL;
    }
    object_get_locked(object);
    fds_unlock();
    return object;
}

struct object *fds_add_socket_locked(int fd)
{
    slot_t *slot = make_slot(fd);

    return slot ? atomic_exchange(slot, &socket_mark) : NULL;
}

void fds_remove_socket_locked(int fd)
{
    if (fds_is_socket(fd)) {
        atomic_store(slot_of(fd), NULL);
    }
}

void fds_closed(int fd)
{
    slot_t *slot = slot_of(fd);
    struct object *object;

    fds_lock();
    object = atomic_exchange(slot, NULL);
    lost_locked(fd, object);
    fds_unlock();
    object_put(object);
}

int fds_next_socket(unsigned first, unsigned last)
{
    int fd;

    for (fd = next_used(first, last); fd >= 0;
         fd = next_used((unsigned)fd + 1, last)) {
        if (fds_is_socket(fd)) {
            return fd;
        }
    }
    return -1;
}

void fds_closed_range(unsigned first, unsigned last)
{
    int fd;

    for (fd = next_used(first, last); fd >= 0;
         fd = next_used((unsigned)fd + 1, last)) {
        if (!fds_is_socket(fd)) {
            fds_closed(fd);
        }
    }
}

struct object *fds_copy_locked(int from, int to)
{
    slot_t *source = slot_of(from), *target;
    struct object *object = source ? atomic_load(source) : NULL;
    struct object *old;

    if (object == &socket_mark) {
        object = NULL;
    }
    target = object ? make_slot(to) : slot_of(to);
    if (!target) {
        return NULL;
    }
    object_get_locked(object);
    old = atomic_exchange(target, object);
    lost_locked(to, old);
    return old;
}

/* fork() */

static void before_fork(void)
{
    fds_lock();
}

static void after_fork_in_parent(void)
{
    fds_unlock();
}

/*
 * A child has copies of the descriptors. KVM refuses it the parent's VMs
 * (kvm_vm_ioctl: -EIO in another mm), and so do we: nothing is known of them
 * any more, so the ioctl goes to KVM. The memory is left, for another thread
 * may have been using it.
 */
static void after_fork_in_child(void)
{
    int fd;

    pthread_mutex_init(&lock, NULL);
    owner = getpid();
    streams_abandon();
    platform_abandon();
    for (fd = next_used(0, MAX_FD - 1); fd >= 0;
         fd = next_used((unsigned)fd + 1, MAX_FD - 1)) {
        struct object *object = atomic_load(slot_of(fd));

        if (object == &socket_mark || object->kind == FD_VM ||
            object->kind == FD_VCPU) {
            atomic_store(slot_of(fd), NULL);
        }
    }
}

void fds_init(void)
{
    owner = getpid();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
