/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of the library know of each other
 */
#ifndef SHIM_H
#define SHIM_H

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "sev_call.h"

#define EXPORT __attribute__((visibility("default")))
#define PRINTF(text, first) __attribute__((format(printf, text, first)))

/* log.c: one line to stderr each, and errno is kept */
void shim_error(const char *format, ...) PRINTF(1, 2);
void shim_trace(const char *format, ...) PRINTF(1, 2);
bool shim_is_tracing(void);

/* A text of the daemon as a terminal can bear it; @size bytes of @out */
void shim_quote(char *out, size_t size, const uint8_t *text, size_t length);

/* memory.c: the program's memory, which may not be there */
bool memory_read(void *to, uint64_t address, size_t size);
/* The beginning of a text that need not be for us: nothing is ever said */
bool memory_peek(char *to, const char *from, size_t size);
bool memory_write(uint64_t address, const void *from, size_t size);
bool memory_zero(uint64_t address, size_t size);
bool memory_is_mapped(uint64_t address, uint64_t size);

/*
 * conn.c, negotiate.c and command.c: one connection to the daemon, used by one
 * thread at a time
 */
struct conn;

enum conn_state {
    CONN_NEVER,         /* not connected yet; the next call tries again */
    CONN_READY,
    CONN_LOST,          /* what the daemon had made for it is gone */
};

struct conn *conn_new(void);
/* Its guest has ended then, unless the daemon is late; errno is kept */
void conn_free(struct conn *conn);
enum conn_state conn_state(const struct conn *conn);
/* Make it ready if it never was; false, and a line on stderr, if that fails */
bool conn_open(struct conn *conn);
/* Take what the daemon has said meanwhile; false if the connection is lost */
bool conn_check(struct conn *conn);
/* For connections that leave nothing in the daemon: begin anew */
void conn_reset(struct conn *conn);

/* The registers of a command: r4 and those after it, and what came back */
struct command {
    const struct sev_call *call;
    uint64_t in[SEV_MAX_FIELDS];
    uint64_t out[SEV_MAX_FIELDS];
    uint32_t out_mask;              /* bit n: out[n] came back */
};

/* 0, a firmware status, or a negative errno */
int64_t conn_call(struct conn *conn, struct command *command);

/* stream.c: after a fork, let go of what the parent goes on using */
void streams_abandon(void);

/* access.c: which memory a command is about */
enum {
    ACCESS_READ     = HCLP_DIRECTION_IN,
    ACCESS_WRITE    = HCLP_DIRECTION_OUT,
};

/* How many bytes it may write, each once */
uint64_t access_room(const struct command *command);
bool access_allowed(const struct command *command, uint64_t address,
                    uint64_t size, unsigned way);

/* fds.c: descriptors that are not what they seem */
enum fd_kind {
    FD_KVM,             /* of a made-up /dev/kvm */
    FD_VM,
    FD_VCPU,
    FD_SEV,
    FD_SOCKET,          /* of a connection: not the program's to close */
};

/* Of KVM_CREATE_VM: KVM_X86_*_VM of newer kernels' headers */
enum {
    VM_TYPE_DEFAULT     = 0,
    VM_TYPE_SEV         = 2,
    VM_TYPE_SEV_ES      = 3,
};

struct vm;

struct object {
    enum fd_kind kind;
    unsigned refs;                  /* under the lock of fds.c */
    struct vm *vm;                  /* a vCPU's */
    int fd;                         /* a vCPU's, or -1: all were closed */
};

struct vcpus {
    struct object **list;           /* in the order in which they were made */
    unsigned count;
};

struct vm {
    struct object object;
    bool is_fake;
    bool is_foreign;                /* made before we saw it: vCPUs unknown */
    unsigned long type;
    pthread_mutex_t lock;           /* of what follows */
    const struct sev_call *init;    /* by which it became one of SEV, or NULL */
    struct conn *conn;
    struct vcpus vcpus;             /* under the lock of fds.c */
};

void fds_init(void);
bool fds_are_ours(void);            /* not a child that shares our memory */
bool fds_tracked(int fd);
/* What the program has made: takes the caller's reference, also if it fails */
bool fds_add(int fd, struct object *object);
/* What it has come by: the VM at @fd, which is @vm if there was none */
struct vm *fds_adopt(int fd, struct vm *vm);
/* To be put */
struct object *fds_get(int fd);
bool fds_is_socket(int fd);
int fds_next_socket(unsigned first, unsigned last);
void fds_closed(int fd);
void fds_closed_range(unsigned first, unsigned last);
void fds_lock(void);
void fds_unlock(void);
/* With the lock held; what @to or @fd was is to be put after unlocking */
struct object *fds_copy_locked(int from, int to);
struct object *fds_add_socket_locked(int fd);
void fds_remove_socket_locked(int fd);

/* objects.c: their lives */
struct object *object_new(enum fd_kind kind);
struct object *object_get_locked(struct object *object);
/* NULL is none. The last one may wait for the daemon: no lock may be held */
void object_put(struct object *object);
struct vm *vm_new(unsigned long type, bool is_fake);
struct object *vcpu_new(struct vm *vm, int fd);
struct vm *vm_of(struct object *object);
/* How many vCPUs, and with @fds not NULL their descriptors, at most @max */
unsigned vm_vcpus(struct vm *vm, int *fds, unsigned max);

bool vm_is_es(const struct vm *vm);

/* platform.c: the process's own connection, for commands of /dev/sev */
int64_t platform_call(struct command *command);
void platform_abandon(void);

/* ioctl.c: -errno or the result */
bool sev_ioctl_wanted(int fd, unsigned long request);
long sev_ioctl(int fd, unsigned long request, void *arg);

/* kvm.c: the same, of what KVM does for a VM of SEV beside the commands */
void kvm_init(void);
long kvm_create_vm(int fd, unsigned long type);
long kvm_create_vcpu(int fd, unsigned long id);
long kvm_check_extension(int fd, unsigned long cap);
long kvm_device_attr(int fd, unsigned long request, void *arg);
/* -ENOSYS: it is as for a real one */
long kvm_fake_ioctl(struct object *object, unsigned long request, void *arg);
int kvm_open_fake(int flags);
bool kvm_is_fake(void);
bool kvm_is_sev_type(unsigned long type);
struct vm *kvm_adopt(int fd);

/* fields.c: false if the structure, which is at @data, is not mapped */
bool fields_read(struct command *command, uint64_t data);
bool fields_write(const struct command *command, uint64_t data);
/* The little-endian number in @size bytes */
uint64_t load_le(const uint8_t *bytes, unsigned size);

/* vmsa.c: 0 or -errno; the save areas of all vCPUs, which are to be freed */
int vmsa_build(struct vm *vm, uint8_t **pages, unsigned *count);

#endif
