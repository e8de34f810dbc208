// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Prints to the serial port what a launch put into memory: the table of hashes of kernel, initrd
 * and command line, and the table of secrets. Then it ends QEMU if there is an isa-debug-exit, with
 * status 1 if all it found is well formed and 3 if not, or halts.
 */
#include <stddef.h>
#include <stdint.h>

#include "firmware.h"

#define COM1		0x3f8
#define COM1_LSR	(COM1 + 5)
#define LSR_THRE	0x20
#define DEBUG_EXIT	0x501	/* QEMU hw/misc/debugexit.c */

/* AMD publication 24594, Fn8000_001F, EAX. */
#define SEV_LEAF	0x8000001f
#define SEV_LEAF_SEV	(1 << 1)
#define SEV_LEAF_ES	(1 << 3)

#define GUID_SIZE	16

/* QEMU target/i386/sev.c: every length counts its own header, and is le16. */
struct hash_entry {
	uint8_t guid[GUID_SIZE];
	uint16_t length;
	uint8_t hash[32];
} __attribute__((packed));

struct hash_table {
	uint8_t guid[GUID_SIZE];
	uint16_t length;
	struct hash_entry cmdline, initrd, kernel;
} __attribute__((packed));

/* Linux Documentation/security/secrets/coco.rst: the same, but le32. */
struct secret_header {
	uint8_t guid[GUID_SIZE];
	uint32_t length;
} __attribute__((packed));

/* 9438d606-4f22-4cc9-b479-a793d411fd21 */
static const uint8_t hash_table_guid[GUID_SIZE] = {
	0x06, 0xd6, 0x38, 0x94, 0x22, 0x4f, 0xc9, 0x4c,
	0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21,
};

/* 1e74f542-71dd-4d66-963e-ef4287ff173b */
static const uint8_t secret_table_guid[GUID_SIZE] = {
	0x42, 0xf5, 0x74, 0x1e, 0xdd, 0x71, 0x66, 0x4d,
	0x96, 0x3e, 0xef, 0x42, 0x87, 0xff, 0x17, 0x3b,
};

static inline void outb(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void cpuid(uint32_t leaf, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d)
{
	asm volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(0));
}

static void put_char(char c)
{
	while (!(inb(COM1_LSR) & LSR_THRE))
		;
	outb(COM1, c);
}

static void put(const char *text)
{
	while (*text)
		put_char(*text++);
}

static void put_hex(const uint8_t *bytes, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++) {
		put_char("0123456789abcdef"[bytes[i] >> 4]);
		put_char("0123456789abcdef"[bytes[i] & 15]);
	}
}

static void put_number(uint32_t number)
{
	if (number >= 10)
		put_number(number / 10);
	put_char('0' + number % 10);
}

/* A GUID's first three fields are little-endian. */
static void put_guid(const uint8_t *guid)
{
	static const uint8_t order[GUID_SIZE] = {
		3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15,
	};
	size_t i;

	for (i = 0; i < GUID_SIZE; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			put_char('-');
		put_hex(&guid[order[i]], 1);
	}
}

static int is_equal(const uint8_t *a, const uint8_t *b, size_t count)
{
	while (count--)
		if (*a++ != *b++)
			return 0;
	return 1;
}

static int is_text(const uint8_t *bytes, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (bytes[i] < 0x20 || bytes[i] > 0x7e)
			return 0;
	return 1;
}

static void print_hash(const char *name, const struct hash_entry *entry)
{
	put("hashes: ");
	put(name);
	put(" ");
	put_hex(entry->hash, sizeof(entry->hash));
	put("\n");
}

/* Gives 0 for a table or none, 1 for a bad one. */
static int print_hashes(void)
{
	const struct hash_table *table = (const void *)HASHES_BASE;

	if (!is_equal(table->guid, hash_table_guid, GUID_SIZE)) {
		put("hashes: none\n");
		return 0;
	}
	if (table->length != sizeof(*table)) {
		put("hashes: bad length\n");
		return 1;
	}
	print_hash("cmdline", &table->cmdline);
	print_hash("initrd", &table->initrd);
	print_hash("kernel", &table->kernel);
	return 0;
}

static void print_secret(const struct secret_header *entry)
{
	const uint8_t *data = (const void *)(entry + 1);
	size_t count = entry->length - sizeof(*entry);

	put("secret: ");
	put_guid(entry->guid);
	put(" ");
	put_number(count);
	if (is_text(data, count)) {
		put(" bytes, text: ");
		while (count--)
			put_char(*data++);
	} else {
		put(" bytes, hex: ");
		put_hex(data, count);
	}
	put("\n");
}

static int print_secrets(void)
{
	const struct secret_header *table = (const void *)SECRET_BASE;
	uint32_t at = sizeof(*table);

	if (!is_equal(table->guid, secret_table_guid, GUID_SIZE)) {
		put("secret: none\n");
		return 0;
	}
	if (table->length < sizeof(*table) || table->length > SECRET_SIZE) {
		put("secret: bad length of the table\n");
		return 1;
	}
	while (at < table->length) {
		const struct secret_header *entry = (const void *)(SECRET_BASE + at);
		uint32_t left = table->length - at;

		if (left < sizeof(*entry) || entry->length < sizeof(*entry) ||
		    entry->length > left) {
			put("secret: bad length of an entry\n");
			return 1;
		}
		print_secret(entry);
		at += entry->length;
	}
	put("secret: end of the table\n");
	return 0;
}

/*
 * Whether the guest is told that it has SEV. On a KVM without it, it must not be: who is told reads
 * the MSR SEV_STATUS, which is not there.
 */
static void print_sev(void)
{
	uint32_t eax, ebx, ecx, edx;

	cpuid(0x80000000, &eax, &ebx, &ecx, &edx);
	if (eax >= SEV_LEAF)
		cpuid(SEV_LEAF, &eax, &ebx, &ecx, &edx);
	else
		eax = 0;
	put(eax & SEV_LEAF_ES ? "cpuid: SEV-ES\n" :
	    eax & SEV_LEAF_SEV ? "cpuid: SEV\n" : "cpuid: no SEV\n");
}

void main(void)
{
	int status;

	put("firmware: runs\n");
	print_sev();
	status = print_hashes();
	status |= print_secrets();
	put("firmware: done\n");
	outb(DEBUG_EXIT, status);	/* QEMU ends with 2 * status + 1 */
}
