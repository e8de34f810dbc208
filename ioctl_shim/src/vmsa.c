/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The save areas (VMSA) of a VM's vCPUs, as KVM would hand them to the
 * firmware for LAUNCH_UPDATE_VMSA
 *
 * Linux arch/x86/kvm/svm/sev.c, sev_es_sync_vmsa(): the VMCB's save area, the
 * registers that KVM keeps elsewhere, and, unless the VM was made by
 * KVM_SEV_ES_INIT, the FPU.
 */

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "shim.h"
#include "vcpu.h"
#include "vmsa.h"

#define MAX_VCPUS           4096u   /* KVM's own limit is below */

#define EFER_SVME           (1ull << 12)
#define CR0_CACHE_BITS      (1ull << 30 | 1ull << 29)      /* CD, NW */
#define CR4_MCE             (1ull << 6)
#define DR7_FIXED_1         (1ull << 10)

#define XFEATURE_YMM        2
#define XFEATURE_PKRU       9
#define XSTATE_BV           512     /* in the standard format of XSAVE */

/* As svm_set_segment() keeps it in the VMCB */
static struct vmsa_segment segment_of(const struct kvm_segment *segment)
{
    bool present = segment->present && !segment->unusable;

    return (struct vmsa_segment) {
        .selector = segment->selector,
        .limit = segment->limit,
        .base = segment->base,
        .attrib = (uint16_t)((segment->type & 15) |
                             (segment->s & 1) << 4 |
                             (segment->dpl & 3) << 5 |
                             present << 7 |
                             (segment->avl & 1) << 8 |
                             (segment->l & 1) << 9 |
                             (segment->db & 1) << 10 |
                             (segment->g & 1) << 11),
    };
}

static struct vmsa_segment table_of(const struct kvm_dtable *table)
{
    return (struct vmsa_segment) { .limit = table->limit, .base = table->base };
}

static void set_registers(struct vmsa *vmsa, const struct kvm_regs *regs)
{
    vmsa->rax = regs->rax;
    vmsa->rbx = regs->rbx;
    vmsa->rcx = regs->rcx;
    vmsa->rdx = regs->rdx;
    vmsa->rsp = regs->rsp;
    vmsa->rbp = regs->rbp;
    vmsa->rsi = regs->rsi;
    vmsa->rdi = regs->rdi;
    vmsa->r8 = regs->r8;
    vmsa->r9 = regs->r9;
    vmsa->r10 = regs->r10;
    vmsa->r11 = regs->r11;
    vmsa->r12 = regs->r12;
    vmsa->r13 = regs->r13;
    vmsa->r14 = regs->r14;
    vmsa->r15 = regs->r15;
    vmsa->rip = regs->rip;
    vmsa->rflags = regs->rflags;
}

static void set_system_registers(struct vmsa *vmsa,
                                 const struct kvm_sregs *sregs)
{
    vmsa->es = segment_of(&sregs->es);
    vmsa->cs = segment_of(&sregs->cs);
    vmsa->ss = segment_of(&sregs->ss);
    vmsa->ds = segment_of(&sregs->ds);
    vmsa->fs = segment_of(&sregs->fs);
    vmsa->gs = segment_of(&sregs->gs);
    vmsa->ldtr = segment_of(&sregs->ldt);
    vmsa->tr = segment_of(&sregs->tr);
    vmsa->gdtr = table_of(&sregs->gdt);
    vmsa->idtr = table_of(&sregs->idt);
    vmsa->cpl = sregs->ss.dpl & 3;
    vmsa->cr2 = sregs->cr2;
    vmsa->cr3 = sregs->cr3;
    /* What svm_set_efer(), svm_set_cr4() and svm_set_cr0() make of them */
    vmsa->efer = sregs->efer | EFER_SVME;
    vmsa->cr4 = sregs->cr4 | CR4_MCE;
    vmsa->cr0 = sregs->cr0 & ~CR0_CACHE_BITS;
}

static void set_debug_registers(struct vmsa *vmsa,
                                const struct kvm_debugregs *debug)
{
    vmsa->dr6 = debug->dr6;
    vmsa->dr7 = debug->dr7 | DR7_FIXED_1;
}

static void set_msrs(struct vmsa *vmsa, const uint64_t *msrs)
{
    vmsa->g_pat = msrs[VCPU_PAT];
    vmsa->star = msrs[VCPU_STAR];
    vmsa->lstar = msrs[VCPU_LSTAR];
    vmsa->cstar = msrs[VCPU_CSTAR];
    vmsa->sfmask = msrs[VCPU_SYSCALL_MASK];
    vmsa->kernel_gs_base = msrs[VCPU_KERNEL_GS_BASE];
    vmsa->sysenter_cs = msrs[VCPU_SYSENTER_CS];
    vmsa->sysenter_esp = msrs[VCPU_SYSENTER_ESP];
    vmsa->sysenter_eip = msrs[VCPU_SYSENTER_EIP];
    vmsa->xss = msrs[VCPU_XSS];
}

/* Where a state component is in the standard format of XSAVE; NULL: unused */
static const uint8_t *component(const uint8_t *xsave, unsigned feature,
                                size_t size)
{
    unsigned eax = 0, offset = 0, ecx, edx;
    uint64_t in_use;

    memcpy(&in_use, xsave + XSTATE_BV, sizeof(in_use));
    if (!(in_use & (1ull << feature)) ||
        !__get_cpuid_count(0xd, feature, &eax, &offset, &ecx, &edx) ||
        eax < size || offset + size > sizeof(struct kvm_xsave)) {
        return NULL;
    }
    return xsave + offset;
}

/* The FXSAVE image at the beginning of the XSAVE area */
struct fxsave {
    uint16_t fcw;
    uint16_t fsw;
    uint8_t ftw;
    uint8_t reserved;
    uint16_t fop;
    uint64_t rip;
    uint64_t rdp;
    uint32_t mxcsr;
    uint32_t mxcsr_mask;
    uint8_t st[8][16];
    uint8_t xmm[256];
};

static void set_fpu(struct vmsa *vmsa, const uint8_t *xsave)
{
    const uint8_t *ymm = component(xsave, XFEATURE_YMM,
                                   sizeof(vmsa->fpreg_ymm));
    struct fxsave fx;
    unsigned i;

    memcpy(&fx, xsave, sizeof(fx));
    vmsa->x87_dp = fx.rdp;
    vmsa->mxcsr = fx.mxcsr;
    vmsa->x87_ftw = fx.ftw;
    vmsa->x87_fsw = fx.fsw;
    vmsa->x87_fcw = fx.fcw;
    vmsa->x87_fop = fx.fop;
    vmsa->x87_rip = fx.rip;
    /* Eight bytes of each register, then two of each */
    for (i = 0; i < 8; i++) {
        memcpy(vmsa->fpreg_x87 + 8 * i, fx.st[i], 8);
        memcpy(vmsa->fpreg_x87 + 64 + 2 * i, fx.st[i] + 8, 2);
    }
    memcpy(vmsa->fpreg_xmm, fx.xmm, sizeof(vmsa->fpreg_xmm));
    if (ymm) {
        memcpy(vmsa->fpreg_ymm, ymm, sizeof(vmsa->fpreg_ymm));
    }
}

static void set_pkru(struct vmsa *vmsa, const uint8_t *xsave)
{
    const uint8_t *pkru = component(xsave, XFEATURE_PKRU, sizeof(vmsa->pkru));

    if (pkru) {
        memcpy(&vmsa->pkru, pkru, sizeof(vmsa->pkru));
    }
}

static void write_page(struct vmsa *vmsa, const struct vcpu *vcpu,
                       bool with_fpu)
{
    const uint8_t *xsave = (const uint8_t *)&vcpu->xsave;

    set_registers(vmsa, &vcpu->regs);
    set_system_registers(vmsa, &vcpu->sregs);
    set_debug_registers(vmsa, &vcpu->debug);
    set_msrs(vmsa, vcpu->msrs);
    vmsa->xcr0 = vcpu->xcr0;
    set_pkru(vmsa, xsave);
    if (with_fpu) {
        set_fpu(vmsa, xsave);
    }
}

/* 0 or -errno */
static int build_one(int fd, bool with_fpu, struct vmsa *vmsa)
{
    struct vcpu vcpu;
    int result;

    memset(&vcpu, 0, sizeof(vcpu));
    result = vcpu_read(fd, &vcpu);
    if (result < 0) {
        return result;
    }
    if (vcpu.debug.dr7 & ~DR7_FIXED_1) {
        return -EINVAL;             /* as KVM: it cannot be kept for a guest */
    }
    write_page(vmsa, &vcpu, with_fpu);
    return 0;
}

int vmsa_build(struct vm *vm, uint8_t **pages, unsigned *count)
{
    bool with_fpu = vm->type != VM_TYPE_DEFAULT;
    unsigned i, vcpus = vm_vcpus(vm, NULL, 0);
    struct vmsa *vmsas;
    int *fds, result = 0;

    if (vm->is_foreign) {
        shim_error("the vCPUs of a VM that another process has made are not"
                   " known; LAUNCH_UPDATE_VMSA needs their state");
        return -EINVAL;
    }
    if (!vcpus) {
        return 0;
    }
    if (vm->is_fake || vcpus > MAX_VCPUS) {
        shim_error("there are no registers of %u vCPUs to measure; give"
                   " LAUNCH_UPDATE_VMSA a structure that names the save"
                   " areas", vcpus);
        return -EINVAL;
    }
    fds = calloc(vcpus, sizeof(*fds));
    vmsas = calloc(vcpus, sizeof(*vmsas));
    if (!fds || !vmsas) {
        result = -ENOMEM;
    } else {
        vm_vcpus(vm, fds, vcpus);
    }
    for (i = 0; result == 0 && i < vcpus; i++) {
        result = build_one(fds[i], with_fpu, &vmsas[i]);
        if (result < 0) {
            shim_error("vCPU %u: its registers cannot be read: %s", i,
                       strerror(-result));
        }
    }
    free(fds);
    if (result < 0) {
        free(vmsas);
        return result;
    }
    *pages = (uint8_t *)vmsas;
    *count = vcpus;
    return 0;
}
