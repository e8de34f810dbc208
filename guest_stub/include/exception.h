/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Exceptions: expected ones are caught, others are told and end the run. */
#ifndef STUB_EXCEPTION_H
#define STUB_EXCEPTION_H

#include <stdint.h>

#include "smp.h"

#define VECTOR_SYSTEM_RESET	0x100
#define VECTOR_MACHINE_CHECK	0x200
#define VECTOR_DATA_STORAGE	0x300
#define VECTOR_EXTERNAL		0x500
#define VECTOR_PROGRAM		0x700
#define VECTOR_DECREMENTER	0x900
#define VECTOR_SYSTEM_CALL	0xc00

/* Takes over the vectors, in the image's byte order. Firmware must be gone. */
void exception_init(void);

/*
 * Run function(arg); returns the vector of the exception that ended it, or 0. The
 * frame is then in this_cpu->frame.
 */
uint64_t exception_try(void (*function)(void *arg), void *arg);

void exception_handle(struct exception_frame *frame);

#endif
