// SPDX-License-Identifier: GPL-2.0-or-later
/* The vectors, and what becomes of an exception. */
#include "exception.h"

#include "asm_defs.h"
#include "console.h"
#include "hcall.h"
#include "rtas.h"
#include "test.h"

#define FIRST_VECTOR		0x100
#define END_OF_VECTORS		0x1800
#define VECTOR_SLOT		0x20	/* some lie no further apart */

#define SET_MODE_RESOURCE_LE	4	/* LoPAR 14.5.4.3.1.2 */

/* start.S */
void exception_entry(void);

static void write_vector(uint64_t address)
{
	uint32_t *slot = (uint32_t *)address;
	int64_t offset = (int64_t)((uintptr_t)exception_entry - (address + 16));

	slot[0] = 0x7db143a6;				/* mtsprg 1,r13 */
	slot[1] = 0x7db042a6;				/* mfsprg r13,0 */
	slot[2] = 0xf86d0000 | FRAME_GPR(3);		/* std r3,FRAME_GPR(3)(r13) */
	slot[3] = 0x38600000 | (uint32_t)address;	/* li r3,vector */
	slot[4] = 0x48000000 | ((uint32_t)offset & 0x03fffffc);	/* b exception_entry */
	asm volatile("dcbst 0,%0; sync; icbi 0,%0; isync" : : "r"(slot) : "memory");
}

void exception_init(void)
{
	struct hcall_regs regs;
	uint64_t address;

	if (HCALL(&regs, H_SET_MODE, MSR_NATIVE_LE, SET_MODE_RESOURCE_LE, 0, 0) !=
	    H_SUCCESS)
		console_printf("# H_SET_MODE refused to set the exceptions' byte order\n");
	for (address = FIRST_VECTOR; address < END_OF_VECTORS; address += VECTOR_SLOT)
		write_vector(address);
}

uint64_t exception_try(void (*function)(void *arg), void *arg)
{
	struct cpu *cpu = this_cpu;

	if (context_save(&cpu->recovery)) {
		cpu->expecting = false;
		return cpu->frame.vector;
	}
	cpu->expecting = true;
	asm volatile("" : : : "memory");
	function(arg);
	asm volatile("" : : : "memory");
	cpu->expecting = false;
	return 0;
}

static void set_decrementer(uint64_t ticks)
{
	asm volatile("mtdec %0" : : "r"(ticks));
}

static void describe(const struct exception_frame *frame)
{
	unsigned int n;

	console_printf("# EXCEPTION cpu=%u vector=0x%lx nip=0x%lx srr1=0x%lx lr=0x%lx\n",
		       this_cpu->index, frame->vector, frame->nip, frame->msr, frame->lr);
	console_printf("# dar=0x%lx dsisr=0x%lx ctr=0x%lx xer=0x%lx cr=0x%lx\n", frame->dar,
		       frame->dsisr, frame->ctr, frame->xer, frame->cr);
	for (n = 0; n < 32; n += 4)
		console_printf("# r%-2u %016lx %016lx %016lx %016lx\n", n, frame->gpr[n],
			       frame->gpr[n + 1], frame->gpr[n + 2], frame->gpr[n + 3]);
}

void exception_handle(struct exception_frame *frame)
{
	struct cpu *cpu = this_cpu;

	if (frame->vector == VECTOR_DECREMENTER) {
		/* Open only in problem state, where MSR[EE] cannot be closed. */
		set_decrementer(0x7fffffff);
		return;
	}
	if (cpu->expecting)
		context_restore(&cpu->recovery);

	console_set_panic();
	if (cpu->handling++ == 0) {
		describe(frame);
		console_printf("Bail out! unexpected exception 0x%lx\n", frame->vector);
		stub_exit(STATUS_EXCEPTION);
	}
	/* An exception while telling of one: say the least, and end. */
	console_write("\nEXIT: STATUS=2\n", 16);
	rtas_os_term("guest_stub: exception within an exception");
}
