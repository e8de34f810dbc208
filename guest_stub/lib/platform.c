// SPDX-License-Identifier: GPL-2.0-or-later
/* Reading the device tree, once, through firmware. */
#include "platform.h"

#include <stddef.h>

#include "args.h"
#include "console.h"
#include "firmware.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define CELL_SIZE		4
#define PCI_SPACE_MEM32		2	/* "ss" of phys.hi, PCI binding 2.2.1.1 */
#define PCI_RANGE_CELLS		7	/* 3 PCI address, 2 CPU address, 2 size */

struct platform platform;

static uint32_t cells[256];

static unsigned int read_cells(phandle_t node, const char *name)
{
	int size = of_getprop(node, name, cells, sizeof(cells));

	if (size < 0)
		return 0;
	if ((size_t)size > sizeof(cells))
		size = sizeof(cells);
	return (unsigned int)size / CELL_SIZE;
}

static uint64_t two_cells(unsigned int n)
{
	return (uint64_t)be32(cells[n]) << 32 | be32(cells[n + 1]);
}

static bool has_type(phandle_t node, const char *type)
{
	static char text[32];
	int size = of_getprop(node, "device_type", text, sizeof(text) - 1);

	if (size <= 0)
		return false;
	text[sizeof(text) - 1] = '\0';
	return !strcmp(text, type);
}

static void read_terminal(void)
{
	phandle_t node = of_chosen_instance("stdout");

	/* Without one the console stays with unit 0, for which QEMU takes the first. */
	if (read_cells(node, "reg"))
		platform.terminal = be32(cells[0]);
	console_set_terminal(platform.terminal);
}

/* Regions are kept in order, whatever the order of their nodes, and joined. */
static void add_ram(uint64_t base, uint64_t size)
{
	struct ram_region *ram = platform.ram;
	unsigned int n = platform.ram_count, m;

	if (!size || n == MAX_RAM_REGIONS)
		return;
	for (; n && ram[n - 1].base > base; n--)
		ram[n] = ram[n - 1];
	ram[n].base = base;
	ram[n].size = size;
	platform.ram_count++;
	for (n = 0, m = 1; m < platform.ram_count; m++) {
		if (ram[n].base + ram[n].size == ram[m].base)
			ram[n].size += ram[m].size;
		else
			ram[++n] = ram[m];
	}
	platform.ram_count = n + 1;
	platform.ram_end = ram[n].base + ram[n].size;
}

static void read_memory(phandle_t node)
{
	unsigned int n, count = read_cells(node, "reg");

	for (n = 0; n + 4 <= count; n += 4)
		add_ram(two_cells(n), two_cells(n + 2));
}

static void read_host_bridge(phandle_t node)
{
	unsigned int n, count = read_cells(node, "ranges");

	for (n = 0; n + PCI_RANGE_CELLS <= count; n += PCI_RANGE_CELLS) {
		if ((be32(cells[n]) >> 24 & 3) == PCI_SPACE_MEM32)
			platform.mmio_base = two_cells(n + 3);
	}
}

static void read_cpu(phandle_t node)
{
	unsigned int n, count;

	platform.timebase_hz = of_getprop_cell(node, "timebase-frequency", 512000000);
	platform.has_radix |= of_getprop(node, "ibm,processor-radix-AP-encodings", cells,
					 sizeof(cells)) > 0;
	count = read_cells(node, "ibm,ppc-interrupt-server#s");
	for (n = 0; n < count && platform.cpu_count < MAX_CPUS; n++)
		platform.cpu_server[platform.cpu_count++] = be32(cells[n]);
}

/* The boot CPU is the one with the lowest number; firmware lists them in any order. */
static void sort_cpus(void)
{
	unsigned int n, m;

	for (n = 0; n < platform.cpu_count; n++) {
		for (m = n + 1; m < platform.cpu_count; m++) {
			uint32_t a = platform.cpu_server[n], b = platform.cpu_server[m];

			if (b < a) {
				platform.cpu_server[n] = b;
				platform.cpu_server[m] = a;
			}
		}
	}
	for (n = 0; n < platform.cpu_count; n++)
		cpus[n].server = platform.cpu_server[n];
}

/* Of one cell or two: Linux takes either, too (drivers/of/fdt.c). */
static uint64_t read_address(phandle_t node, const char *name)
{
	unsigned int count = read_cells(node, name);

	if (!count)
		return 0;
	return count == 1 ? be32(cells[0]) : two_cells(0);
}

static void read_initrd(void)
{
	phandle_t chosen = of_find("/chosen");
	uint64_t start = read_address(chosen, "linux,initrd-start");
	uint64_t end = read_address(chosen, "linux,initrd-end");

	if (end > start && end <= platform.ram_end) {
		platform.initrd = start;
		platform.initrd_size = end - start;
	}
}

static void read_tree(void)
{
	phandle_t root = of_find("/"), node;

	for (node = of_child(root); node != NO_PHANDLE; node = of_peer(node)) {
		if (has_type(node, "memory"))
			read_memory(node);
		else if (has_type(node, "pci") && !platform.mmio_base)
			read_host_bridge(node);
	}
	for (node = of_child(of_find("/cpus")); node != NO_PHANDLE; node = of_peer(node)) {
		if (has_type(node, "cpu"))
			read_cpu(node);
	}
	sort_cpus();
	read_initrd();
	platform.secure_boot = (int32_t)of_getprop_cell(root, "ibm,secure-boot", 0xffffffff);
	platform.trusted_boot = (int32_t)of_getprop_cell(root, "ibm,trusted-boot", 0xffffffff);
	platform.has_firmware_password =
		of_getprop(of_find("/chosen"), "ibm,plpks-pw", cells, sizeof(cells)) >= 0;
}

static void read_rtas(void)
{
	phandle_t rtas = of_find("/rtas");
	struct rtas_tokens *tokens = &platform.rtas;
	int size;

	size = of_getprop(rtas, "ibm,hypertas-functions", platform.hypertas, HYPERTAS_SIZE);
	if (size > 0)
		platform.hypertas_size = size < HYPERTAS_SIZE ? (uint32_t)size : HYPERTAS_SIZE;
	tokens->power_off = of_getprop_cell(rtas, "power-off", NO_TOKEN);
	tokens->system_reboot = of_getprop_cell(rtas, "system-reboot", NO_TOKEN);
	tokens->os_term = of_getprop_cell(rtas, "ibm,os-term", NO_TOKEN);
	tokens->start_cpu = of_getprop_cell(rtas, "start-cpu", NO_TOKEN);
	tokens->stop_self = of_getprop_cell(rtas, "stop-self", NO_TOKEN);
	tokens->query_cpu_stopped_state =
		of_getprop_cell(rtas, "query-cpu-stopped-state", NO_TOKEN);
}

/*
 * The vector that a client passes to ibm,client-architecture-support (LoPAR B.6.2.3):
 * processors, then option vectors 1 to 5, each headed by its size less one.
 */
static uint32_t negotiate(void)
{
	static uint8_t vector[] __attribute__((aligned(8))) = {
		0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,	/* this very processor: see below */
		0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 0x00, 0x06,	/* ISA 3.1 */
		0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 0x00, 0x05,	/* ISA 3.0 */
		0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 0x00, 0x04,	/* ISA 2.07 */
		0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff,	/* end of processors */
		5 - 1,
		3 - 1, 0x00, 0xff, 0x80,	/* 1: ISA levels, with 3.0 */
		1 - 1, 0x00,			/* 2: Open Firmware */
		1 - 1, 0x00,			/* 3: size of a processor's data */
		1 - 1, 0x00,			/* 4: share of a processor */
		26 - 1,				/* 5: what the platform may do */
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0x40, 0x00, 0x40,		/* bytes 24 to 26: radix, GTSE */
	};
	uint32_t pvr;

	asm("mfpvr %0" : "=r"(pvr));
	store_be32(vector + 4, pvr);
	if (!platform.has_radix)
		vector[sizeof(vector) - 3] = vector[sizeof(vector) - 1] = 0;
	return of_client_architecture_support(vector);
}

static void read_bootargs(void)
{
	of_getprop(of_find("/chosen"), "bootargs", platform.bootargs, BOOTARGS_SIZE - 1);
	args_parse(platform.bootargs);
}

void platform_init(uint64_t of_entry)
{
	of_init(of_entry);
	read_terminal();
	read_bootargs();
	read_rtas();
	read_tree();
	if (arg_number("cas", 0)) {
		uint32_t result = negotiate();

		memset(&platform, 0, sizeof(platform));
		platform.cas_done = true;
		platform.cas_result = result;
		read_terminal();
		read_bootargs();
		read_rtas();
		read_tree();
	}
	of_quiesce();
}

void platform_resume(void)
{
	console_set_terminal(platform.terminal);
	args_parse(platform.bootargs);
}

bool platform_has_hypertas(const char *name)
{
	const char *p = platform.hypertas, *end = p + platform.hypertas_size;

	while (p < end) {
		if (!strcmp(p, name))
			return true;
		p += strlen(p) + 1;
	}
	return false;
}
