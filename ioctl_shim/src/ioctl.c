/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ioctls that the library takes, as KVM and the ccp driver answer them
 *
 * Linux arch/x86/kvm/svm/sev.c: sev_mem_enc_ioctl(); drivers/crypto/ccp/
 * sev-dev.c: sev_ioctl().
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#include <stdlib.h>
#include "next.h"
#include "shim.h"

/* The low half of an ioctl's number, as in the numbers of the table */
#define LOW_HALF(request) ((request) & 0xffff)

static long pass(int fd, unsigned long request, void *arg)
{
    int result = next.ioctl(fd, request, arg);

    return result < 0 ? -errno : result;
}

static const struct sev_call *find_command(unsigned long request, uint32_t id)
{
    if (id >> SEV_COMMAND_SHIFT) {
        return NULL;
    }
    return sev_call_find(LOW_HALF(request) << SEV_COMMAND_SHIFT | id);
}

static void trace(const char *what, const struct sev_call *call,
                  int64_t status)
{
    const char *name = sev_status_name(status);

    if (shim_is_tracing()) {
        shim_trace("%s: %s: %" PRId64 "%s%s%s", what, call->name, status,
                   name ? " (" : "", name ? name : "", name ? ")" : "");
    }
}

/*
 * What the caller sees: a firmware's refusal is -EIO and its code in @error,
 * which stays what it was when the kernel refuses.
 */
static long finish(int64_t status, uint64_t error_address)
{
    uint32_t error = (uint32_t)status;

    if (status >= 0 &&
        !memory_write(error_address, &error, sizeof(error))) {
        return -EFAULT;
    }
    return status > 0 ? -EIO : (long)status;
}

/* VMs */

/*
 * The daemon, which judges the arguments, would begin a guest. So where sev_fd
 * is to be refused, what KVM looks at before it is judged here: the structure,
 * and each blob as by psp_copy_user_blob().
 */
static int refuse_start(const struct sev_call *call, uint64_t data)
{
    bool is_optional = call->number == CALL_KVM_SEV_LAUNCH_START;
    struct command command = { .call = call };
    unsigned i;

    if (!fields_read(&command, data)) {
        return -EFAULT;
    }
    for (i = 0; i < call->buffer_count; i++) {
        uint64_t address = command.in[call->buffers[i].address];
        uint64_t size = command.in[call->buffers[i].size];

        if (!address && is_optional) {
            continue;
        }
        if (!address || !size || size > SEV_BLOB_MAX_SIZE) {
            return -EINVAL;
        }
        if (!memory_is_mapped(address, size)) {
            return -EFAULT;
        }
    }
    return -EBADF;
}

/* What KVM refuses for a reason that the daemon cannot know */
static int check_vm(struct vm *vm, const struct sev_call *call,
                    const uint8_t *argument, uint64_t data)
{
    bool is_new_type = vm->type != VM_TYPE_DEFAULT;
    uint32_t sev_fd;

    switch (call->number) {
    case CALL_KVM_SEV_INIT:
    case CALL_KVM_SEV_ES_INIT:
        return vm_vcpus(vm, NULL, 0) || is_new_type ? -EINVAL : 0;
    case CALL_KVM_SEV_INIT2: {
        struct command command = { .call = call };

        if (vm_vcpus(vm, NULL, 0) || !is_new_type) {
            return -EINVAL;
        }
        if (!fields_read(&command, data)) {
            return -EFAULT;
        }
        /* There is no GHCB but with SEV-ES */
        return vm->type == VM_TYPE_SEV &&
               command.in[FIELD_KVM_SEV_INIT2_GHCB_VERSION] ? -EINVAL : 0;
    }
    case CALL_KVM_SEV_LAUNCH_START:
    case CALL_KVM_SEV_RECEIVE_START:
        sev_fd = (uint32_t)load_le(argument + KVM_SEV_CMD_SEV_FD, 4);
        return vm->init && next.fcntl((int)sev_fd, F_GETFD) < 0 ?
               refuse_start(call, data) : 0;
    case CALL_KVM_SEV_LAUNCH_UPDATE_VMSA:
        return vm_is_es(vm) ? 0 : -ENOTTY;
    default:
        return 0;
    }
}

/* The connection is ready, or it is as if there were no secure processor */
static bool vm_is_ready(struct vm *vm)
{
    switch (conn_state(vm->conn)) {
    case CONN_NEVER:
        return conn_open(vm->conn);
    case CONN_READY:
        return conn_check(vm->conn);
    default:
        return false;
    }
}

/* KVM takes no structure for LAUNCH_UPDATE_VMSA: it has the vCPUs */
static int64_t update_vmsa(struct vm *vm, const struct sev_call *call)
{
    struct command command = { .call = call };
    uint8_t *pages = NULL;
    unsigned count = 0;
    int64_t status = vmsa_build(vm, &pages, &count);

    if (status == 0 && count) {
        command.in[FIELD_KVM_SEV_LAUNCH_UPDATE_VMSA_UADDR] = (uintptr_t)pages;
        command.in[FIELD_KVM_SEV_LAUNCH_UPDATE_VMSA_LEN] =
            (uint64_t)count * SEV_VMSA_SIZE;
        status = conn_call(vm->conn, &command);
    }
    free(pages);
    return status;
}

static int64_t call_vm(struct vm *vm, const struct sev_call *call,
                       uint64_t data)
{
    struct command command = { .call = call };
    int64_t status;

    if (!vm_is_ready(vm)) {
        return -ENODEV;
    }
    if (call->number == CALL_KVM_SEV_LAUNCH_UPDATE_VMSA && !data) {
        return update_vmsa(vm, call);
    }
    if (!fields_read(&command, data)) {
        return -EFAULT;
    }
    status = conn_call(vm->conn, &command);
    if (!fields_write(&command, data)) {
        status = -EFAULT;
    }
    return status;
}

static void note_init(struct vm *vm, const struct sev_call *call)
{
    switch (call->number) {
    case CALL_KVM_SEV_INIT:
    case CALL_KVM_SEV_ES_INIT:
    case CALL_KVM_SEV_INIT2:
        vm->init = call;
        break;
    default:
        break;
    }
}

static long encrypt_op(struct vm *vm, uint64_t arg)
{
    uint8_t argument[KVM_SEV_CMD_SIZE];
    const struct sev_call *call;
    int64_t status;
    uint64_t data;

    if (!arg) {
        return vm_is_ready(vm) ? 0 : -ENOTTY;
    }
    if (!memory_read(argument, arg, sizeof(argument))) {
        return -EFAULT;
    }
    call = find_command(KVM_MEMORY_ENCRYPT_OP,
                        (uint32_t)load_le(argument + KVM_SEV_CMD_ID, 4));
    if (!call) {
        return -EINVAL;
    }
    data = load_le(argument + KVM_SEV_CMD_DATA, 8);
    status = check_vm(vm, call, argument, data);
    if (status == 0) {
        status = call_vm(vm, call, data);
    }
    if (status == 0) {
        note_init(vm, call);
    }
    trace("VM", call, status);
    return finish(status, arg + KVM_SEV_CMD_ERROR);
}

static long region_op(struct vm *vm, unsigned long request, uint64_t arg)
{
    const struct sev_call *call = find_command(request, 0);
    int64_t status = call_vm(vm, call, arg);

    trace("VM", call, status);
    return status > 0 ? -EIO : (long)status;
}

static long vm_ioctl(int fd, unsigned long request, void *arg)
{
    struct object *object = fds_get(fd);
    struct vm *vm = vm_of(object);
    long result;

    if (!vm) {
        object_put(object);
        vm = kvm_adopt(fd);
    }
    /* A VM of another technology has its own commands, and KVM has it */
    if (!vm || (vm->type != VM_TYPE_DEFAULT && !kvm_is_sev_type(vm->type))) {
        object_put(vm ? &vm->object : NULL);
        return pass(fd, request, arg);
    }
    pthread_mutex_lock(&vm->lock);
    if (request == KVM_MEMORY_ENCRYPT_OP) {
        result = encrypt_op(vm, (uintptr_t)arg);
    } else {
        result = region_op(vm, request, (uintptr_t)arg);
    }
    pthread_mutex_unlock(&vm->lock);
    object_put(&vm->object);
    return result;
}

/* The platform */

static bool changes_platform(const struct sev_call *call)
{
    switch (call->number) {
    case CALL_SEV_FACTORY_RESET:
    case CALL_SEV_PEK_GEN:
    case CALL_SEV_PEK_CSR:
    case CALL_SEV_PDH_GEN:
    case CALL_SEV_PEK_CERT_IMPORT:
        return true;
    default:
        return false;
    }
}

static int64_t call_platform(const struct sev_call *call, uint64_t data)
{
    struct command command = { .call = call };
    int64_t status;

    if (!fields_read(&command, data)) {
        return -EFAULT;
    }
    status = platform_call(&command);
    if (!fields_write(&command, data)) {
        status = -EFAULT;
    }
    return status;
}

static long issue_cmd(int fd, uint64_t arg)
{
    uint8_t argument[SEV_ISSUE_CMD_SIZE];
    int flags = next.fcntl(fd, F_GETFL);
    const struct sev_call *call;
    int64_t status;

    if (flags < 0 || (flags & O_PATH)) {
        return -EBADF;
    }
    if (!fds_are_ours()) {
        return -ENODEV;             /* a child by vfork() has our memory */
    }
    if (!memory_read(argument, arg, sizeof(argument))) {
        return -EFAULT;
    }
    call = find_command(SEV_ISSUE_CMD,
                        (uint32_t)load_le(argument + SEV_ISSUE_CMD_CMD, 4));
    if (!call) {
        return -EINVAL;
    }
    if (changes_platform(call) && (flags & O_ACCMODE) == O_RDONLY) {
        status = -EPERM;
    } else {
        status = call_platform(call,
                               load_le(argument + SEV_ISSUE_CMD_DATA, 8));
    }
    trace("platform", call, status);
    return finish(status, arg + SEV_ISSUE_CMD_ERROR);
}

/* All of them */

/* A descriptor that we have made up: the kernel knows no such ioctl of it */
static bool is_made_up(int fd)
{
    return kvm_is_fake() && fds_tracked(fd);
}

bool sev_ioctl_wanted(int fd, unsigned long request)
{
    switch ((uint32_t)request) {
    case KVM_CREATE_VM:
    case KVM_CREATE_VCPU:
    case KVM_CHECK_EXTENSION:
    case KVM_HAS_DEVICE_ATTR:
    case KVM_GET_DEVICE_ATTR:
    case KVM_MEMORY_ENCRYPT_OP:
    case KVM_MEMORY_ENCRYPT_REG_REGION:
    case KVM_MEMORY_ENCRYPT_UNREG_REGION:
    case SEV_ISSUE_CMD:
        return true;
    default:
        return is_made_up(fd);
    }
}

static long dispatch(int fd, unsigned long request, void *arg)
{
    long result;

    if (is_made_up(fd)) {
        struct object *object = fds_get(fd);

        result = object ? kvm_fake_ioctl(object, request, arg) : -ENOSYS;
        object_put(object);
        if (result != -ENOSYS) {
            return result;
        }
    }
    switch (request) {
    case KVM_CREATE_VM:
        return kvm_create_vm(fd, (unsigned long)(uintptr_t)arg);
    case KVM_CREATE_VCPU:
        return kvm_create_vcpu(fd, (unsigned long)(uintptr_t)arg);
    case KVM_CHECK_EXTENSION:
        return kvm_check_extension(fd, (unsigned long)(uintptr_t)arg);
    case KVM_HAS_DEVICE_ATTR:
    case KVM_GET_DEVICE_ATTR:
        return kvm_device_attr(fd, request, arg);
    case KVM_MEMORY_ENCRYPT_OP:
    case KVM_MEMORY_ENCRYPT_REG_REGION:
    case KVM_MEMORY_ENCRYPT_UNREG_REGION:
        return vm_ioctl(fd, request, arg);
    case SEV_ISSUE_CMD:
        return issue_cmd(fd, (uintptr_t)arg);
    default:
        return pass(fd, request, arg);
    }
}

long sev_ioctl(int fd, unsigned long request, void *arg)
{
    long result;
    int state;

    /* An ioctl is no place to be cancelled at, and a lock may be held */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    result = dispatch(fd, (uint32_t)request, arg);
    pthread_setcancelstate(state, NULL);
    return result;
}
