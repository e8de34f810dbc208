/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The save areas (VMSA) of a VM's vCPUs, as KVM would hand them to the
 * firmware for LAUNCH_UPDATE_VMSA
 *
 * Layout: AMD publication 24593, volume 2, table B-4. Contents: Linux
 * arch/x86/kvm/svm/sev.c, sev_es_sync_vmsa(): the VMCB's save area, the
 * registers that KVM keeps elsewhere, and, unless the VM was made by
 * KVM_SEV_ES_INIT, the FPU.
 */

#include <cpuid.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include "shim.h"

#define MAX_VCPUS           4096u   /* KVM's own limit is below */

#define MSR_IA32_SYSENTER_CS    0x174
#define MSR_IA32_SYSENTER_ESP   0x175
#define MSR_IA32_SYSENTER_EIP   0x176
#define MSR_IA32_CR_PAT         0x277
#define MSR_IA32_XSS            0xda0
#define MSR_STAR                0xc0000081
#define MSR_LSTAR               0xc0000082
#define MSR_CSTAR               0xc0000083
#define MSR_SYSCALL_MASK        0xc0000084
#define MSR_KERNEL_GS_BASE      0xc0000102

#define EFER_SVME           (1ull << 12)
#define CR0_CACHE_BITS      (1ull << 30 | 1ull << 29)      /* CD, NW */
#define CR4_MCE             (1ull << 6)
#define DR7_FIXED_1         (1ull << 10)

#define XFEATURE_YMM        2
#define XFEATURE_PKRU       9
#define XSTATE_BV           512     /* in the standard format of XSAVE */

struct segment {
    uint16_t selector;
    uint16_t attrib;
    uint32_t limit;
    uint64_t base;
} __attribute__((packed));

struct vmsa {
    struct segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
    uint8_t reserved_0a0[43];
    uint8_t cpl;
    uint8_t reserved_0cc[4];
    uint64_t efer;
    uint8_t reserved_0d8[104];
    uint64_t xss;
    uint64_t cr4;
    uint64_t cr3;
    uint64_t cr0;
    uint64_t dr7;
    uint64_t dr6;
    uint64_t rflags;
    uint64_t rip;
    uint8_t reserved_180[88];
    uint64_t rsp;
    uint8_t reserved_1e0[24];
    uint64_t rax;
    uint64_t star;
    uint64_t lstar;
    uint64_t cstar;
    uint64_t sfmask;
    uint64_t kernel_gs_base;
    uint64_t sysenter_cs;
    uint64_t sysenter_esp;
    uint64_t sysenter_eip;
    uint64_t cr2;
    uint8_t reserved_248[32];
    uint64_t g_pat;
    uint8_t reserved_270[120];
    uint32_t pkru;
    uint8_t reserved_2ec[28];
    uint64_t rcx;
    uint64_t rdx;
    uint64_t rbx;
    uint8_t reserved_320[8];
    uint64_t rbp;
    uint64_t rsi;
    uint64_t rdi;
    uint64_t r8_to_r15[8];
    uint8_t reserved_380[48];
    uint64_t sev_features;
    uint8_t reserved_3b8[48];
    uint64_t xcr0;
    uint8_t reserved_3f0[16];
    uint64_t x87_dp;
    uint32_t mxcsr;
    uint16_t x87_ftw;
    uint16_t x87_fsw;
    uint16_t x87_fcw;
    uint16_t x87_fop;
    uint16_t x87_ds;
    uint16_t x87_cs;
    uint64_t x87_rip;
    uint8_t fpreg_x87[80];
    uint8_t fpreg_xmm[256];
    uint8_t fpreg_ymm[256];
    uint8_t rest[2448];
} __attribute__((packed));

_Static_assert(sizeof(struct vmsa) == SEV_VMSA_SIZE, "it is a page");
_Static_assert(offsetof(struct vmsa, efer) == 0x0d0, "table B-4");
_Static_assert(offsetof(struct vmsa, xss) == 0x140, "table B-4");
_Static_assert(offsetof(struct vmsa, rip) == 0x178, "table B-4");
_Static_assert(offsetof(struct vmsa, rsp) == 0x1d8, "table B-4");
_Static_assert(offsetof(struct vmsa, rax) == 0x1f8, "table B-4");
_Static_assert(offsetof(struct vmsa, g_pat) == 0x268, "table B-4");
_Static_assert(offsetof(struct vmsa, pkru) == 0x2e8, "table B-4");
_Static_assert(offsetof(struct vmsa, rcx) == 0x308, "table B-4");
_Static_assert(offsetof(struct vmsa, sev_features) == 0x3b0, "table B-4");
_Static_assert(offsetof(struct vmsa, xcr0) == 0x3e8, "table B-4");
_Static_assert(offsetof(struct vmsa, mxcsr) == 0x408, "table B-4");
_Static_assert(offsetof(struct vmsa, fpreg_x87) == 0x420, "table B-4");

/* As svm_set_segment() keeps it in the VMCB */
static struct segment segment_of(const struct kvm_segment *segment)
{
    bool present = segment->present && !segment->unusable;

    return (struct segment) {
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

static struct segment table_of(const struct kvm_dtable *table)
{
    return (struct segment) { .limit = table->limit, .base = table->base };
}

static int get(int vcpu, unsigned long request, void *to)
{
    return next_ioctl(vcpu, request, to) < 0 ? -errno : 0;
}

static int get_registers(int vcpu, struct vmsa *vmsa)
{
    struct kvm_regs regs;
    int result = get(vcpu, KVM_GET_REGS, &regs);

    if (result < 0) {
        return result;
    }
    vmsa->rax = regs.rax;
    vmsa->rbx = regs.rbx;
    vmsa->rcx = regs.rcx;
    vmsa->rdx = regs.rdx;
    vmsa->rsp = regs.rsp;
    vmsa->rbp = regs.rbp;
    vmsa->rsi = regs.rsi;
    vmsa->rdi = regs.rdi;
    memcpy(vmsa->r8_to_r15, &regs.r8, sizeof(vmsa->r8_to_r15));
    vmsa->rip = regs.rip;
    vmsa->rflags = regs.rflags;
    return 0;
}

static int get_system_registers(int vcpu, struct vmsa *vmsa)
{
    struct kvm_sregs sregs;
    int result = get(vcpu, KVM_GET_SREGS, &sregs);

    if (result < 0) {
        return result;
    }
    vmsa->es = segment_of(&sregs.es);
    vmsa->cs = segment_of(&sregs.cs);
    vmsa->ss = segment_of(&sregs.ss);
    vmsa->ds = segment_of(&sregs.ds);
    vmsa->fs = segment_of(&sregs.fs);
    vmsa->gs = segment_of(&sregs.gs);
    vmsa->ldtr = segment_of(&sregs.ldt);
    vmsa->tr = segment_of(&sregs.tr);
    vmsa->gdtr = table_of(&sregs.gdt);
    vmsa->idtr = table_of(&sregs.idt);
    vmsa->cpl = sregs.ss.dpl & 3;
    vmsa->cr2 = sregs.cr2;
    vmsa->cr3 = sregs.cr3;
    /* What svm_set_efer(), svm_set_cr4() and svm_set_cr0() make of them */
    vmsa->efer = sregs.efer | EFER_SVME;
    vmsa->cr4 = sregs.cr4 | CR4_MCE;
    vmsa->cr0 = sregs.cr0 & ~CR0_CACHE_BITS;
    return 0;
}

static int get_debug_registers(int vcpu, struct vmsa *vmsa)
{
    struct kvm_debugregs debug;
    int result = get(vcpu, KVM_GET_DEBUGREGS, &debug);

    if (result < 0) {
        return result;
    }
    if (debug.dr7 & ~DR7_FIXED_1) {
        return -EINVAL;             /* as KVM: it cannot be kept for a guest */
    }
    vmsa->dr6 = debug.dr6;
    vmsa->dr7 = debug.dr7 | DR7_FIXED_1;
    return 0;
}

static int get_msrs(int vcpu, struct vmsa *vmsa)
{
    static const uint32_t numbers[] = {
        MSR_IA32_CR_PAT, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SYSCALL_MASK,
        MSR_KERNEL_GS_BASE, MSR_IA32_SYSENTER_CS, MSR_IA32_SYSENTER_ESP,
        MSR_IA32_SYSENTER_EIP,
        MSR_IA32_XSS,               /* the last, for it may not be there */
    };
    enum { COUNT = sizeof(numbers) / sizeof(numbers[0]) };
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[COUNT];
    } msrs = { .head.nmsrs = COUNT };
    int i, done;

    for (i = 0; i < COUNT; i++) {
        msrs.entries[i].index = numbers[i];
    }
    /* How many were read: it stops at the first that is not there */
    done = next_ioctl(vcpu, KVM_GET_MSRS, &msrs);
    if (done < COUNT - 1) {
        return done < 0 ? -errno : -EINVAL;
    }
    vmsa->g_pat = msrs.entries[0].data;
    vmsa->star = msrs.entries[1].data;
    vmsa->lstar = msrs.entries[2].data;
    vmsa->cstar = msrs.entries[3].data;
    vmsa->sfmask = msrs.entries[4].data;
    vmsa->kernel_gs_base = msrs.entries[5].data;
    vmsa->sysenter_cs = msrs.entries[6].data;
    vmsa->sysenter_esp = msrs.entries[7].data;
    vmsa->sysenter_eip = msrs.entries[8].data;
    vmsa->xss = done == COUNT ? msrs.entries[9].data : 0;
    return 0;
}

static int get_xcr0(int vcpu, struct vmsa *vmsa)
{
    struct kvm_xcrs xcrs;
    unsigned i;

    /* Without XSAVE there is none; KVM then has the value of a reset */
    vmsa->xcr0 = 1;
    if (next_ioctl(vcpu, KVM_GET_XCRS, &xcrs) < 0) {
        return errno == EINVAL || errno == ENOTTY ? 0 : -errno;
    }
    for (i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++) {
        if (xcrs.xcrs[i].xcr == 0) {
            vmsa->xcr0 = xcrs.xcrs[i].value;
        }
    }
    return 0;
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

static int get_extended_state(int vcpu, struct vmsa *vmsa, bool with_fpu)
{
    struct kvm_xsave xsave;
    const uint8_t *bytes = (const uint8_t *)&xsave, *pkru;
    int result;

    memset(&xsave, 0, sizeof(xsave));
    result = get(vcpu, KVM_GET_XSAVE, &xsave);
    if (result < 0) {
        return result;
    }
    pkru = component(bytes, XFEATURE_PKRU, sizeof(vmsa->pkru));
    if (pkru) {
        memcpy(&vmsa->pkru, pkru, sizeof(vmsa->pkru));
    }
    if (with_fpu) {
        set_fpu(vmsa, bytes);
    }
    return 0;
}

static int build_one(int vcpu, bool with_fpu, struct vmsa *vmsa)
{
    int result = get_registers(vcpu, vmsa);

    if (result == 0) {
        result = get_system_registers(vcpu, vmsa);
    }
    if (result == 0) {
        result = get_debug_registers(vcpu, vmsa);
    }
    if (result == 0) {
        result = get_msrs(vcpu, vmsa);
    }
    if (result == 0) {
        result = get_xcr0(vcpu, vmsa);
    }
    if (result == 0) {
        result = get_extended_state(vcpu, vmsa, with_fpu);
    }
    return result;
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
