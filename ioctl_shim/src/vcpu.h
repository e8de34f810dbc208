/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A vCPU's registers, as KVM gives them to its VMM
 */
#ifndef VCPU_H
#define VCPU_H

#include <linux/kvm.h>
#include <stdint.h>

/* Those that LAUNCH_UPDATE_VMSA is about; their numbers are in vcpu.c */
enum vcpu_msr {
    VCPU_PAT,
    VCPU_STAR,
    VCPU_LSTAR,
    VCPU_CSTAR,
    VCPU_SYSCALL_MASK,
    VCPU_KERNEL_GS_BASE,
    VCPU_SYSENTER_CS,
    VCPU_SYSENTER_ESP,
    VCPU_SYSENTER_EIP,
    VCPU_XSS,                       /* the last, for it may not be there */
    VCPU_MSRS,
};

struct vcpu {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debug;
    uint64_t msrs[VCPU_MSRS];
    uint64_t xcr0;
    struct kvm_xsave xsave;
};

/* 0 or -errno */
int vcpu_read(int fd, struct vcpu *vcpu);

#endif
