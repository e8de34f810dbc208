/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading a vCPU's registers from KVM (Linux Documentation/virt/kvm/api.rst)
 */

#include <errno.h>
#include "next.h"
#include "vcpu.h"

/* Linux arch/x86/include/asm/msr-index.h */
static const uint32_t msr_numbers[VCPU_MSRS] = {
    [VCPU_PAT]              = 0x277,        /* MSR_IA32_CR_PAT */
    [VCPU_STAR]             = 0xc0000081,
    [VCPU_LSTAR]            = 0xc0000082,
    [VCPU_CSTAR]            = 0xc0000083,
    [VCPU_SYSCALL_MASK]     = 0xc0000084,
    [VCPU_KERNEL_GS_BASE]   = 0xc0000102,
    [VCPU_SYSENTER_CS]      = 0x174,        /* MSR_IA32_SYSENTER_CS, ... */
    [VCPU_SYSENTER_ESP]     = 0x175,
    [VCPU_SYSENTER_EIP]     = 0x176,
    [VCPU_XSS]              = 0xda0,        /* MSR_IA32_XSS */
};

static int get(int fd, unsigned long request, void *to)
{
    return next.ioctl(fd, request, to) < 0 ? -errno : 0;
}

static int get_msrs(int fd, uint64_t *values)
{
    union {
        struct kvm_msrs msrs;
        uint8_t room[sizeof(struct kvm_msrs) +
                     VCPU_MSRS * sizeof(struct kvm_msr_entry)];
    } u = { .msrs.nmsrs = VCPU_MSRS };
    int i, done;

    for (i = 0; i < VCPU_MSRS; i++) {
        u.msrs.entries[i].index = msr_numbers[i];
    }
    /* How many were read: it stops at the first that is not there */
    done = next.ioctl(fd, KVM_GET_MSRS, &u.msrs);
    if (done < VCPU_XSS) {
        return done < 0 ? -errno : -EINVAL;
    }
    for (i = 0; i < VCPU_MSRS; i++) {
        values[i] = i < done ? u.msrs.entries[i].data : 0;
    }
    return 0;
}

static int get_xcr0(int fd, uint64_t *value)
{
    struct kvm_xcrs xcrs;
    unsigned i;

    /* Without XSAVE there is none; KVM then has the value of a reset */
    *value = 1;
    if (next.ioctl(fd, KVM_GET_XCRS, &xcrs) < 0) {
        return errno == EINVAL || errno == ENOTTY ? 0 : -errno;
    }
    for (i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++) {
        if (xcrs.xcrs[i].xcr == 0) {
            *value = xcrs.xcrs[i].value;
        }
    }
    return 0;
}

int vcpu_read(int fd, struct vcpu *vcpu)
{
    int result = get(fd, KVM_GET_REGS, &vcpu->regs);

    if (result == 0) {
        result = get(fd, KVM_GET_SREGS, &vcpu->sregs);
    }
    if (result == 0) {
        result = get(fd, KVM_GET_DEBUGREGS, &vcpu->debug);
    }
    if (result == 0) {
        result = get_msrs(fd, vcpu->msrs);
    }
    if (result == 0) {
        result = get_xcr0(fd, &vcpu->xcr0);
    }
    if (result == 0) {
        result = get(fd, KVM_GET_XSAVE, &vcpu->xsave);
    }
    return result;
}
