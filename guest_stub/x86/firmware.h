/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where things are; firmware.lds too. The image ends at 4 GiB; all RAM used is below 9 MiB. */
#ifndef FIRMWARE_H
#define FIRMWARE_H

#define SEGMENT_BASE	0xffff0000	/* of CS at reset */
#define IMAGE_BASE	0xffff8000
#define STACK_TOP	0x00080000

/* Of OVMF: OvmfPkg/AmdSev/AmdSevX64.fdf, one page for both. */
#define SECRET_BASE	0x0080c000
#define SECRET_SIZE	0x00000c00
#define HASHES_BASE	0x0080cc00
#define HASHES_SIZE	0x00000400

#define CODE_SELECTOR	8
#define DATA_SELECTOR	16

#endif
