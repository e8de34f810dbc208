/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * KVM around the commands: which descriptors are VMs and vCPUs, VM types that
 * this host's KVM may lack, and a made-up KVM for hosts that have none
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "next.h"
#include "shim.h"

/* Of kernels newer than the headers may be (Linux 7.2 uapi/linux/kvm.h) */
#ifndef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES 235
#endif
#ifndef KVM_X86_GRP_SEV
#define KVM_X86_GRP_SEV 1
#endif
#ifndef KVM_X86_SEV_VMSA_FEATURES
#define KVM_X86_SEV_VMSA_FEATURES 0
#endif

#define VM_TYPES \
    (1u << VM_TYPE_DEFAULT | 1u << VM_TYPE_SEV | 1u << VM_TYPE_SEV_ES)

/* Linux Documentation/admin-guide/devices.txt */
#define KVM_MAJOR 10
#define KVM_MINOR 232

static bool is_fake;

void kvm_init(void)
{
    const char *value = secure_getenv("HCALLD_SEV_FAKE_KVM");

    is_fake = value && *value && strcmp(value, "0") != 0;
}

bool kvm_is_fake(void)
{
    return is_fake;
}

bool kvm_is_sev_type(unsigned long type)
{
    return type == VM_TYPE_SEV || type == VM_TYPE_SEV_ES;
}

static long result_of(int result)
{
    return result < 0 ? -errno : result;
}

/* A VM or vCPU that cannot be followed is not given out */
static long track(int fd, struct object *object)
{
    if (!object || !fds_add(fd, object)) {
        next.close(fd);
        return -ENOMEM;
    }
    return fd;
}

long kvm_create_vm(int fd, unsigned long type)
{
    unsigned long real = kvm_is_sev_type(type) ? VM_TYPE_DEFAULT : type;
    int result = next.ioctl(fd, KVM_CREATE_VM, (void *)real);
    struct vm *vm;

    if (result < 0) {
        return -errno;
    }
    if (!fds_are_ours()) {
        return result;
    }
    vm = vm_new(type, false);
    return track(result, vm ? &vm->object : NULL);
}

long kvm_create_vcpu(int fd, unsigned long id)
{
    int result = next.ioctl(fd, KVM_CREATE_VCPU, (void *)id);
    struct object *object;
    struct vm *vm;

    if (result < 0) {
        return -errno;
    }
    object = fds_get(fd);
    vm = vm_of(object);
    if (vm) {
        result = (int)track(result, vcpu_new(vm, result));
    }
    object_put(object);
    return result;
}

long kvm_check_extension(int fd, unsigned long cap)
{
    int result = next.ioctl(fd, KVM_CHECK_EXTENSION, (void *)cap);

    if (result < 0) {
        return -errno;
    }
    return cap == KVM_CAP_VM_TYPES ? result | (int)VM_TYPES : result;
}

static bool is_kvm_device(int fd)
{
    struct stat status;

    return fstat(fd, &status) == 0 && S_ISCHR(status.st_mode) &&
           status.st_rdev == makedev(KVM_MAJOR, KVM_MINOR);
}

static bool is_vmsa_features(void *arg, struct kvm_device_attr *attr)
{
    return memory_read(attr, (uintptr_t)arg, sizeof(*attr)) &&
           attr->group == KVM_X86_GRP_SEV &&
           attr->attr == KVM_X86_SEV_VMSA_FEATURES;
}

/* Which SEV_FEATURES INIT2 takes: none, as the daemon has no processor */
static long vmsa_features(unsigned long request,
                          const struct kvm_device_attr *attr)
{
    static const uint64_t features;

    if (request == KVM_GET_DEVICE_ATTR &&
        !memory_write(attr->addr, &features, sizeof(features))) {
        return -EFAULT;
    }
    return 0;
}

long kvm_device_attr(int fd, unsigned long request, void *arg)
{
    struct kvm_device_attr attr;

    if (is_kvm_device(fd) && is_vmsa_features(arg, &attr)) {
        return vmsa_features(request, &attr);
    }
    return result_of(next.ioctl(fd, request, arg));
}

/*
 * A VM that came by a way that we do not see, such as from another process
 * through a socket. KVM says whether it may be used here.
 */
struct vm *kvm_adopt(int fd)
{
    char link[32], target[32];
    ssize_t size;
    struct vm *vm;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    size = readlink(link, target, sizeof(target) - 1);
    if (size < 0) {
        return NULL;
    }
    target[size] = 0;
    if (strcmp(target, "anon_inode:kvm-vm") != 0 || !fds_are_ours() ||
        next.ioctl(fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_NR_VCPUS) < 0) {
        return NULL;
    }
    vm = vm_new(VM_TYPE_DEFAULT, false);
    if (!vm) {
        return NULL;
    }
    vm->is_foreign = true;
    return fds_adopt(fd, vm);
}

/* The made-up KVM */

static int make_fd(const char *name, bool is_cloexec)
{
    return memfd_create(name, is_cloexec ? MFD_CLOEXEC : 0);
}

int kvm_open_fake(int flags)
{
    int fd = make_fd("hcalld-kvm", flags & O_CLOEXEC);
    long result;

    if (fd < 0 || !fds_are_ours()) {
        return fd;
    }
    result = track(fd, object_new(FD_KVM));
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return fd;
}

static long fake_create_vm(unsigned long type)
{
    struct vm *vm;
    int fd;

    if (type != VM_TYPE_DEFAULT && !kvm_is_sev_type(type)) {
        return -EINVAL;
    }
    fd = make_fd("hcalld-kvm-vm", true);
    if (fd < 0) {
        return -errno;
    }
    vm = vm_new(type, true);
    return track(fd, vm ? &vm->object : NULL);
}

static long fake_create_vcpu(struct vm *vm)
{
    int fd = make_fd("hcalld-kvm-vcpu", true);

    return fd < 0 ? -errno : track(fd, vcpu_new(vm, fd));
}

static long fake_system_ioctl(unsigned long request, void *arg)
{
    struct kvm_device_attr attr;

    switch (request) {
    case KVM_GET_API_VERSION:
        return KVM_API_VERSION;
    case KVM_CREATE_VM:
        return fake_create_vm((unsigned long)(uintptr_t)arg);
    case KVM_CHECK_EXTENSION:
        return (uintptr_t)arg == KVM_CAP_VM_TYPES ? (long)VM_TYPES : 0;
    case KVM_HAS_DEVICE_ATTR:
    case KVM_GET_DEVICE_ATTR:
        return is_vmsa_features(arg, &attr) ? vmsa_features(request, &attr) :
               -ENXIO;
    default:
        return -ENOTTY;
    }
}

long kvm_fake_ioctl(struct object *object, unsigned long request, void *arg)
{
    struct vm *vm = vm_of(object);

    switch (object->kind) {
    case FD_KVM:
        return fake_system_ioctl(request, arg);
    case FD_VM:
        if (vm->is_fake && request == KVM_CREATE_VCPU) {
            return fake_create_vcpu(vm);
        }
        if (vm->is_fake && request == KVM_CHECK_EXTENSION) {
            return fake_system_ioctl(request, arg);
        }
        return -ENOSYS;
    case FD_VCPU:
    case FD_SEV:
    default:
        return -ENOSYS;
    }
}
