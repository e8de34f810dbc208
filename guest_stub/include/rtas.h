/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RTAS. Calls go straight to QEMU by its private hypercall, which is all that the RTAS
 * blob of either firmware does, so no change of byte order and no blob are needed.
 */
#ifndef STUB_RTAS_H
#define STUB_RTAS_H

#include <stdint.h>

/*
 * Call token with nargs inputs; returns the first of nret outputs, the others go to
 * outputs, if that is not NULL.
 */
int32_t rtas_call(uint32_t token, unsigned int nargs, const uint32_t *args,
		  unsigned int nret, uint32_t *outputs);

void rtas_power_off(void) __attribute__((noreturn));
void rtas_reboot(void) __attribute__((noreturn));

/* Ends QEMU with a failure under -action panic=exit-failure, else powers off. */
void rtas_os_term(const char *message) __attribute__((noreturn));

#endif
