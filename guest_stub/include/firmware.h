/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The Open Firmware client interface (IEEE 1275-1994 6.3, PowerPC binding 8.2). It is
 * used once, before the stub takes over the exception vectors; platform.h keeps what
 * was read.
 */
#ifndef STUB_FIRMWARE_H
#define STUB_FIRMWARE_H

#include <stddef.h>
#include <stdint.h>

typedef uint32_t phandle_t;
#define NO_PHANDLE	0xffffffffu

void of_init(uint64_t entry);
phandle_t of_find(const char *path);
phandle_t of_child(phandle_t parent);
phandle_t of_peer(phandle_t node);

/* Size of the property, which may exceed what was copied; -1 without one. */
int of_getprop(phandle_t node, const char *name, void *out, size_t size);

/* Value of a one-cell property, or the other value without one. */
uint32_t of_getprop_cell(phandle_t node, const char *name, uint32_t otherwise);

/* Node behind the instance handle in a property of /chosen. */
phandle_t of_chosen_instance(const char *property);

/* ibm,client-architecture-support (LoPAR B.6.2.3); 0 when it was granted. */
uint32_t of_client_architecture_support(const void *vector);

/* Firmware's last call; it must not be called again. */
void of_quiesce(void);

#endif
