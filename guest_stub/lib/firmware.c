// SPDX-License-Identifier: GPL-2.0-or-later
/* The Open Firmware client interface. All cells are 32 bit and big-endian. */
#include "firmware.h"

#include "string.h"

#define OF_MAX_CELLS	10
#define OF_ERROR	0xffffffffu

/* start.S */
void of_enter(uint32_t args, uint64_t entry);

struct of_args {
	uint32_t service;
	uint32_t nargs;
	uint32_t nrets;
	uint32_t cells[OF_MAX_CELLS];
};

static uint64_t of_entry;

static uint32_t address_cell(const void *p)
{
	return (uint32_t)(uintptr_t)p;	/* the image lies below 16 MiB */
}

/* Calls service; returns the first result cell and, if wanted, the second. */
static uint32_t of_call(const char *service, unsigned int nargs, const uint32_t *args,
			unsigned int nrets, uint32_t *second)
{
	static struct of_args block;
	unsigned int n;

	block.service = be32(address_cell(service));
	block.nargs = be32(nargs);
	block.nrets = be32(nrets);
	for (n = 0; n < OF_MAX_CELLS; n++)
		block.cells[n] = n < nargs ? be32(args[n]) : be32(OF_ERROR);
	asm volatile("" : : : "memory");
	of_enter(address_cell(&block), of_entry);
	if (second)
		*second = be32(block.cells[nargs + 1]);
	return nrets ? be32(block.cells[nargs]) : 0;
}

void of_init(uint64_t entry)
{
	of_entry = entry;
}

/*
 * Strings that firmware reads must survive in memory that it can address; literals of
 * the image do.
 */
phandle_t of_find(const char *path)
{
	const uint32_t args[] = { address_cell(path) };

	return of_call("finddevice", 1, args, 1, NULL);
}

static phandle_t none_if_zero(uint32_t handle)
{
	return handle ? handle : NO_PHANDLE;
}

phandle_t of_child(phandle_t parent)
{
	const uint32_t args[] = { parent };

	return none_if_zero(of_call("child", 1, args, 1, NULL));
}

phandle_t of_peer(phandle_t node)
{
	const uint32_t args[] = { node };

	return none_if_zero(of_call("peer", 1, args, 1, NULL));
}

int of_getprop(phandle_t node, const char *name, void *out, size_t size)
{
	const uint32_t args[] = { node, address_cell(name), address_cell(out),
				  (uint32_t)size };

	if (node == NO_PHANDLE)
		return -1;
	return (int)of_call("getprop", 4, args, 1, NULL);
}

uint32_t of_getprop_cell(phandle_t node, const char *name, uint32_t otherwise)
{
	static uint32_t cell;

	if (of_getprop(node, name, &cell, sizeof(cell)) != sizeof(cell))
		return otherwise;
	return be32(cell);
}

phandle_t of_chosen_instance(const char *property)
{
	uint32_t args[] = { of_getprop_cell(of_find("/chosen"), property, 0) };

	if (!args[0])
		return NO_PHANDLE;
	return of_call("instance-to-package", 1, args, 1, NULL);
}

uint32_t of_client_architecture_support(const void *vector)
{
	const uint32_t open_args[] = { address_cell("/") };
	uint32_t root = of_call("open", 1, open_args, 1, NULL);
	const uint32_t args[] = { address_cell("ibm,client-architecture-support"), root,
				  address_cell(vector) };
	uint32_t result, status;

	if (!root || root == OF_ERROR)
		return OF_ERROR;
	status = of_call("call-method", 3, args, 2, &result);
	return status ? status : result;
}

void of_quiesce(void)
{
	of_call("quiesce", 0, NULL, 0, NULL);
	of_entry = 0;
}
