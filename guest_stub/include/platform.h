/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the device tree said, copied before firmware was left. */
#ifndef STUB_PLATFORM_H
#define STUB_PLATFORM_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_CPUS		8
#define MAX_RAM_REGIONS		32
#define BOOTARGS_SIZE		1024
#define HYPERTAS_SIZE		2048
#define PAGE_SIZE		4096ull

struct ram_region {
	uint64_t base;
	uint64_t size;
};

struct rtas_tokens {
	uint32_t power_off;
	uint32_t system_reboot;
	uint32_t os_term;
	uint32_t start_cpu;
	uint32_t stop_self;
	uint32_t query_cpu_stopped_state;
};

#define NO_TOKEN	0u

struct platform {
	char bootargs[BOOTARGS_SIZE];
	char hypertas[HYPERTAS_SIZE + 1];	/* NUL-separated */
	uint32_t hypertas_size;
	struct ram_region ram[MAX_RAM_REGIONS];
	unsigned int ram_count;
	uint64_t ram_end;		/* end of the highest region */
	uint64_t mmio_base;		/* a window of the PCI host bridge */
	uint32_t timebase_hz;
	uint32_t cpu_server[MAX_CPUS];	/* interrupt server numbers; [0] is the boot CPU */
	unsigned int cpu_count;
	bool has_radix;
	bool has_firmware_password;	/* /chosen/ibm,plpks-pw */
	int32_t secure_boot;		/* root property ibm,secure-boot; -1 without one */
	int32_t trusted_boot;
	uint64_t initrd, initrd_size;	/* what QEMU's -initrd put into RAM; 0 without one */
	bool cas_done;			/* the tree is the one after CAS */
	uint32_t cas_result;
	uint32_t terminal;		/* unit of the console */
	bool is_secure;			/* UV_ESM has been, and has started us anew */
	struct rtas_tokens rtas;
};

extern struct platform platform;

/* Reads everything; of_entry is r5 at entry. Firmware is gone afterwards. */
void platform_init(uint64_t of_entry);

/* After UV_ESM: platform was brought over (esm.h), firmware is long gone. */
void platform_resume(void);

bool platform_has_hypertas(const char *name);

/* RAM that nothing uses, above the image and all firmware: 16 MiB to the end. */
#define FREE_RAM_BASE	0x1000000ull

#endif
