/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What descriptors stand for: VMs, vCPUs and devices, each as long as anybody
 * has a reference. Counts and lists are under the lock of fds.c.
 */

#include <stdlib.h>
#include "shim.h"

struct object *object_new(enum fd_kind kind)
{
    struct object *object = calloc(1, sizeof(*object));

    if (object) {
        object->kind = kind;
        object->refs = 1;
        object->fd = -1;
    }
    return object;
}

struct vm *vm_new(unsigned long type, bool is_fake)
{
    struct vm *vm = calloc(1, sizeof(*vm));

    if (!vm) {
        return NULL;
    }
    vm->conn = conn_new();
    if (!vm->conn) {
        free(vm);
        return NULL;
    }
    vm->object.kind = FD_VM;
    vm->object.refs = 1;
    vm->object.fd = -1;
    vm->type = type;
    vm->is_fake = is_fake;
    pthread_mutex_init(&vm->lock, NULL);
    return vm;
}

struct object *vcpu_new(struct vm *vm, int fd)
{
    struct object *object = object_new(FD_VCPU);
    struct object **list;

    if (!object) {
        return NULL;
    }
    fds_lock();
    list = realloc(vm->vcpus.list, (vm->vcpus.count + 1) * sizeof(*list));
    if (!list) {
        fds_unlock();
        free(object);
        return NULL;
    }
    vm->vcpus.list = list;
    list[vm->vcpus.count++] = object;
    object->fd = fd;
    object->vm = vm;
    object_get_locked(&vm->object);
    fds_unlock();
    return object;
}

struct vm *vm_of(struct object *object)
{
    return object && object->kind == FD_VM ? (struct vm *)object : NULL;
}

unsigned vm_vcpus(struct vm *vm, int *fds, unsigned max)
{
    unsigned i, count;

    fds_lock();
    count = vm->vcpus.count;
    for (i = 0; fds && i < count && i < max; i++) {
        fds[i] = vm->vcpus.list[i]->fd;
    }
    fds_unlock();
    return count;
}

bool vm_is_es(const struct vm *vm)
{
    if (!vm->init) {
        return false;
    }
    return vm->init->number == CALL_KVM_SEV_ES_INIT ||
           (vm->init->number == CALL_KVM_SEV_INIT2 &&
            vm->type == VM_TYPE_SEV_ES);
}

struct object *object_get_locked(struct object *object)
{
    if (object) {
        object->refs++;
    }
    return object;
}

static void free_vm(struct vm *vm)
{
    unsigned i;

    conn_free(vm->conn);
    for (i = 0; i < vm->vcpus.count; i++) {
        free(vm->vcpus.list[i]);
    }
    free(vm->vcpus.list);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

void object_put(struct object *object)
{
    bool is_last;

    if (!object || object->kind == FD_SOCKET) {
        return;
    }
    fds_lock();
    is_last = --object->refs == 0;
    if (is_last) {
        object->fd = -1;
    }
    fds_unlock();
    if (!is_last) {
        return;
    }
    switch (object->kind) {
    case FD_VM:
        free_vm((struct vm *)object);
        break;
    case FD_VCPU:
        /* The VM's list has it, as KVM keeps a vCPU that nobody holds open */
        object_put(&object->vm->object);
        break;
    case FD_KVM:
    case FD_SEV:
        free(object);
        break;
    case FD_SOCKET:
        break;
    }
}
