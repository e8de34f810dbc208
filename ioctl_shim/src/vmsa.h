/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The layout of a save area (VMSA): AMD publication 24593, volume 2, table B-4
 */
#ifndef VMSA_H
#define VMSA_H

#include <stddef.h>
#include <stdint.h>
#include "sev_call.h"

struct vmsa_segment {
    uint16_t selector;
    uint16_t attrib;
    uint32_t limit;
    uint64_t base;
} __attribute__((packed));

struct vmsa {
    struct vmsa_segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
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
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
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

#endif
