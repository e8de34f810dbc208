// SPDX-License-Identifier: GPL-2.0-or-later
/* RTAS by QEMU's hypercall (hw/ppc/spapr_hcall.c h_rtas). */
#include "rtas.h"

#include <stddef.h>

#include "hcall.h"
#include "platform.h"
#include "smp.h"
#include "string.h"

#define RTAS_MAX_CELLS	16

struct rtas_args {
	uint32_t token;
	uint32_t nargs;
	uint32_t nrets;
	uint32_t cells[RTAS_MAX_CELLS];
};

int32_t rtas_call(uint32_t token, unsigned int nargs, const uint32_t *args,
		  unsigned int nret, uint32_t *outputs)
{
	struct rtas_args block = {
		.token = be32(token), .nargs = be32(nargs), .nrets = be32(nret),
	};
	struct hcall_regs regs;
	unsigned int n;

	if (token == NO_TOKEN || nargs + nret > RTAS_MAX_CELLS)
		return -1;
	for (n = 0; n < nargs; n++)
		block.cells[n] = be32(args[n]);
	asm volatile("" : : : "memory");
	if (HCALL(&regs, KVMPPC_H_RTAS, (uintptr_t)&block) != H_SUCCESS)
		return -1;
	asm volatile("" : : : "memory");
	for (n = 1; n < nret && outputs; n++)
		outputs[n - 1] = be32(block.cells[nargs + n]);
	return nret ? (int32_t)be32(block.cells[nargs]) : 0;
}

static void wait_for_the_end(void)
{
	for (;;)
		cpu_relax();
}

void rtas_power_off(void)
{
	const uint32_t args[] = { 0xffffffff, 0xffffffff };

	rtas_call(platform.rtas.power_off, 2, args, 1, NULL);
	wait_for_the_end();
	__builtin_unreachable();
}

void rtas_reboot(void)
{
	rtas_call(platform.rtas.system_reboot, 0, NULL, 1, NULL);
	wait_for_the_end();
	__builtin_unreachable();
}

void rtas_os_term(const char *message)
{
	/* QEMU reads 511 bytes from here whatever the length of the text. */
	static char text[512];
	uint32_t args[1];
	size_t size = strlen(message);

	if (size >= sizeof(text))
		size = sizeof(text) - 1;
	memcpy(text, message, size);
	text[size] = '\0';
	args[0] = (uint32_t)(uintptr_t)text;
	rtas_call(platform.rtas.os_term, 1, args, 1, NULL);
	rtas_power_off();
}
