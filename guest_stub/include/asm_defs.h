/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What C and assembly both have to know: MSR bits and offsets in struct cpu.
 * The offsets are held to the structure by static assertions in lib/smp.c.
 */
#ifndef STUB_ASM_DEFS_H
#define STUB_ASM_DEFS_H

/* MSR (Power ISA 3.1 book III 4.2.1), as bits of the low half-word. */
#define MSR_LE		0x0001
#define MSR_RI		0x0002
#define MSR_DR		0x0010
#define MSR_IR		0x0020
#define MSR_ME		0x1000
#define MSR_PR		0x4000
#define MSR_EE		0x8000

/* Secure state (3.1 book III 3.2.1), above the low half-word. */
#define MSR_S		0x400000

#ifdef __LITTLE_ENDIAN__
#define MSR_NATIVE_LE	MSR_LE
#else
#define MSR_NATIVE_LE	0
#endif

/* The low half of the MSR that the stub runs with; MSR[SF] is set beside it. */
#define MSR_NATIVE_LOW	(MSR_ME | MSR_RI | MSR_NATIVE_LE)

/* struct cpu */
#define CPU_STACK_TOP		0
#define CPU_EXCEPTION_STACK_TOP	8
#define CPU_USER_SP		16
#define CPU_FRAME		24

/* struct exception_frame, from CPU_FRAME on */
#define FRAME_GPR(n)		(CPU_FRAME + 8 * (n))
#define FRAME_NIP		(CPU_FRAME + 256)
#define FRAME_MSR		(CPU_FRAME + 264)
#define FRAME_LR		(CPU_FRAME + 272)
#define FRAME_CTR		(CPU_FRAME + 280)
#define FRAME_XER		(CPU_FRAME + 288)
#define FRAME_CR		(CPU_FRAME + 296)
#define FRAME_DAR		(CPU_FRAME + 304)
#define FRAME_DSISR		(CPU_FRAME + 312)
#define FRAME_VECTOR		(CPU_FRAME + 320)

/* r0 at the "sc 0" by which the problem-state trampoline comes back. */
#define USER_RETURN_MAGIC	0x5553

#endif
