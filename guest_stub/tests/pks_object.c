// SPDX-License-Identifier: GPL-2.0-or-later
/* WRITE, READ, REMOVE, CONFIRM: contents, names, and the space that objects take. */
#include "console.h"
#include "pks.h"
#include "prng.h"
#include "string.h"
#include "test.h"

#define CANARY	0x96

static struct pks_label label, other;

static void fill_data(uint64_t seed, size_t size)
{
	struct prng prng;

	prng_seed(&prng, seed);
	prng_fill(&prng, pks_data, size);
}

static void check_read(unsigned int consumer, const struct pks_label *name, const void *data,
		       uint64_t size, uint32_t policy, uint64_t room, uint32_t offset)
{
	struct pks_result result;

	memset(pks_out, CANARY, offset + room + 64);
	result = pks_read(consumer, name, pks_out + offset, room);
	if (!report_code(result.code, H_SUCCESS, "READ of %lu bytes into %lu at offset %u",
			 size, room, offset))
		return;
	report_equal(result.r4, size, "tells the size");
	report_equal(result.r5, policy, "and the policy");
	report(!memcmp(pks_out + offset, data, size), "gives the data");
	report(memory_is(pks_out, CANARY, offset) &&
	       memory_is(pks_out + offset + size, CANARY, room - size + 64),
	       "and touches nothing else");
}

static void check_too_small(unsigned int consumer, uint64_t size, uint64_t room)
{
	struct pks_result result;

	memset(pks_out, CANARY, size + 64);
	result = pks_read(consumer, &label, pks_out, room);
	report_code(result.code, H_TOO_BIG, "READ into %lu bytes", room);
	report_equal(result.r4, size, "tells the size needed");
	report(memory_is(pks_out, CANARY, size + 64), "and writes nothing");
}

static void check_round_trip(unsigned int consumer, const struct pks_config *config,
			     uint64_t size, uint32_t in_offset, uint32_t out_offset)
{
	uint32_t used = pks_used_space();
	struct pks_result result;

	memmove(pks_data + in_offset, pks_data, size);
	if (!report_code(pks_write(consumer, &label, 0, pks_data + in_offset, size), H_SUCCESS,
			 "WRITE of %lu bytes at offset %u for consumer %u", size, in_offset,
			 consumer))
		return;
	report_equal(pks_used_space(), used + config->objoverhead + label.size + size,
		     "takes objoverhead + label + data");
	result = pks_confirm_wait(consumer, &label);
	report_code(result.code, H_SUCCESS, "CONFIRM");
	report_equal(result.r4, 1, "says flushed");
	check_read(consumer, &label, pks_data + in_offset, size, 0, size, out_offset);
	check_too_small(consumer, size, 0);
	if (size > 1)
		check_too_small(consumer, size, size - 1);
	report_code(pks_remove(consumer, &label), H_SUCCESS, "REMOVE");
	report_equal(pks_used_space(), used, "gives the space back");
	result = pks_confirm_wait(consumer, &label);
	report_code(result.code, H_NOT_FOUND, "CONFIRM of the removal");
	report_equal(result.r4, 1, "says flushed, too");
	memset(pks_out, CANARY, 64);
	report_code(pks_read(consumer, &label, pks_out, 64).code, H_NOT_FOUND, "READ of it");
	report(memory_is(pks_out, CANARY, 64), "writes nothing");
	report_code(pks_remove(consumer, &label), H_NOT_FOUND, "REMOVE, once more");
}

static void check_refused(unsigned int consumer, uint64_t size, int64_t code)
{
	uint32_t used = pks_used_space();

	report_code(pks_write(consumer, &label, 0, pks_data, size), code,
		    "WRITE of %lu bytes is more than this keystore takes", size);
	report_equal(pks_used_space(), used, "and takes no space");
}

static void test_pks_object(void)
{
	struct pks_config config;
	uint32_t max, free_space;
	unsigned int consumer, n;

	if (!pks_open())
		return;
	pks_get_config(&config);
	max = pks_max_object_size(&config);
	free_space = config.totalsize - config.usedspace;
	fill_data(1, PKS_BUFFER_SIZE);
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		static const uint64_t sizes[] = { 1, 2, 7, 8, 64, 4000, 4096, 4097 };

		pks_label_set(&label, consumer, "object");
		pks_remove(consumer, &label);
		for (n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
			if (sizes[n] > max)
				check_refused(consumer, sizes[n], H_P6);
			else if (sizes[n] + config.objoverhead + label.size > free_space)
				check_refused(consumer, sizes[n], H_NO_MEM);
			else
				check_round_trip(consumer, &config, sizes[n], 5 * n, 3 * n);
		}
	}
	/* Kernel stacks and slabs end anywhere: data over a page's end, far and near. */
	check_round_trip(PKS_CONSUMER_OS, &config, 64, 4096 - 1, 4096 - 63);
	if (max < free_space - config.objoverhead - label.size)
		check_round_trip(PKS_CONSUMER_OS, &config, max, 1, 1);
	/* Linux passes room for the largest object, whatever the object. */
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 100), H_SUCCESS, "WRITE");
	check_read(PKS_CONSUMER_OS, &label, pks_data, 100, 0, max, 0);
	report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
}
STUB_TEST("pks_object", test_pks_object, "pks", true, "objects go in and come out");

static void test_pks_label(void)
{
	static const uint64_t raw_sizes[] = { 1, 2, 10, 254, 255 };
	unsigned int n, consumer, last = 0;
	uint32_t used;

	if (!pks_open())
		return;
	fill_data(2, 64);
	used = pks_used_space();

	/* A name that is the beginning of another, and one that differs in the last byte. */
	pks_label_set(&label, PKS_CONSUMER_OS, "name");
	pks_label_set(&other, PKS_CONSUMER_OS, "name2");
	pks_remove(PKS_CONSUMER_OS, &label);
	pks_remove(PKS_CONSUMER_OS, &other);
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 16), H_SUCCESS, "a label");
	report_code(pks_read(PKS_CONSUMER_OS, &other, pks_out, 64).code, H_NOT_FOUND,
		    "a longer one is another");
	report_code(pks_write(PKS_CONSUMER_OS, &other, 0, pks_data + 16, 17), H_SUCCESS,
		    "which can be written too");
	check_read(PKS_CONSUMER_OS, &label, pks_data, 16, 0, 64, 0);
	check_read(PKS_CONSUMER_OS, &other, pks_data + 16, 17, 0, 64, 0);
	report_code(pks_remove(PKS_CONSUMER_OS, &other), H_SUCCESS, "is removed");
	other.bytes[other.size - 1] = 0;
	report_code(pks_read(PKS_CONSUMER_OS, &other, pks_out, 64).code, H_NOT_FOUND,
		    "a NUL at the end counts");
	check_read(PKS_CONSUMER_OS, &label, pks_data, 16, 0, 64, 0);

	/* The whole header belongs to the name. */
	memcpy(&other, &label, sizeof(other));
	other.bytes[0] ^= 1;
	report_code(pks_read(PKS_CONSUMER_OS, &other, pks_out, 64).code, H_NOT_FOUND,
		    "another prefix is another label");
	other.bytes[0] ^= 1;
	other.bytes[9] = 0x04;
	report_code(pks_read(PKS_CONSUMER_OS, &other, pks_out, 64).code, H_NOT_FOUND,
		    "another operating system is another label");
	report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "is removed");

	/* Each consumer has its own names. */
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++) {
		pks_label_set(&label, PKS_CONSUMER_OS, "shared");
		pks_remove(consumer, &label);
		report_code(pks_write(consumer, &label, 0, pks_data + consumer, 8), H_SUCCESS,
			    "consumer %u writes the same label", consumer);
	}
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++)
		check_read(consumer, &label, pks_data + consumer, 8, 0, 64, 0);
	for (consumer = 1; consumer <= PKS_CONSUMERS; consumer++)
		report_code(pks_remove(consumer, &label), H_SUCCESS, "consumer %u removes it",
			    consumer);

	/* Names of firmware are bare bytes, of any length and at any address. */
	memset(&label, 0, sizeof(label));
	for (n = 0; n < sizeof(raw_sizes) / sizeof(raw_sizes[0]); n++) {
		for (; last < raw_sizes[n]; last++)
			label.bytes[last] = (uint8_t)(0xff - last);
		label.size = raw_sizes[n];
		pks_remove(PKS_CONSUMER_FIRMWARE, &label);
		report_code(pks_write(PKS_CONSUMER_FIRMWARE, &label, 0, pks_data, 8), H_SUCCESS,
			    "a label of %lu bytes", label.size);
		check_read(PKS_CONSUMER_FIRMWARE, &label, pks_data, 8, 0, 8, 0);
		report_code(pks_remove(PKS_CONSUMER_FIRMWARE, &label), H_SUCCESS, "is removed");
	}
	pks_label_set(&label, PKS_CONSUMER_OS, "");
	for (; label.size < PKS_MAX_LABEL_SIZE; label.size++)
		label.bytes[label.size] = (uint8_t)label.size;
	pks_remove(PKS_CONSUMER_OS, &label);
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 8), H_SUCCESS,
		    "the longest label of the operating system");
	check_read(PKS_CONSUMER_OS, &label, pks_data, 8, 0, 8, 0);
	report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "is removed");
	report_equal(pks_used_space(), used, "space is as before");
}
STUB_TEST("pks_label", test_pks_label, "pks", true, "what makes two labels the same");

static void test_pks_space(void)
{
	struct pks_config config;
	uint32_t used, room, max, written = 0;
	uint64_t size;
	char name[16];
	unsigned int n;

	if (!pks_open())
		return;
	fill_data(3, 65536);
	pks_label_set(&label, PKS_CONSUMER_OS, "space");
	pks_remove(PKS_CONSUMER_OS, &label);
	for (n = 0; n < 64; n++) {
		format_text(name, sizeof(name), "fill%02u", n);
		pks_label_set(&other, PKS_CONSUMER_OS, name);
		pks_remove(PKS_CONSUMER_OS, &other);
	}
	pks_get_config(&config);
	used = config.usedspace;
	max = pks_max_object_size(&config);

	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 32), H_SUCCESS, "WRITE");
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data + 32, 16), H_RESOURCE,
		    "WRITE of a label that exists");
	report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 32), H_RESOURCE,
		    "even with the same data");
	check_read(PKS_CONSUMER_OS, &label, pks_data, 32, 0, 64, 0);
	report_equal(pks_used_space(), used + config.objoverhead + label.size + 32,
		     "space counts it once");
	report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");

	/* Fill up to where one more object of the largest size would not fit. */
	room = config.totalsize - pks_used_space();
	while (room > config.objoverhead + label.size + max && written < 64) {
		format_text(name, sizeof(name), "fill%02u", written);
		pks_label_set(&other, PKS_CONSUMER_OS, name);
		size = room - config.objoverhead - other.size;
		if (size > max)
			size = max;
		if (!report_code(pks_write(PKS_CONSUMER_OS, &other, 0, pks_data, size),
				 H_SUCCESS, "%lu bytes fit into %u", size, room))
			break;
		written++;
		room = config.totalsize - pks_used_space();
	}
	if (room > config.objoverhead + label.size) {
		size = room - config.objoverhead - label.size;
		if (size < max)
			report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, size + 1),
				    H_NO_MEM, "%lu bytes do not fit into %u", size + 1, room);
		report_equal(config.totalsize - pks_used_space(), room, "and take no space");
		report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, size), H_SUCCESS,
			    "%lu bytes fill the keystore", size);
		report_equal(pks_used_space(), config.totalsize, "to the last byte");
		pks_label_set(&other, PKS_CONSUMER_OS, "more");
		report_code(pks_write(PKS_CONSUMER_OS, &other, 0, pks_data, 1), H_NO_MEM,
			    "one more byte does not fit");
		report_code(pks_write(PKS_CONSUMER_OS, &label, 0, pks_data, 1), H_RESOURCE,
			    "that a label exists comes before that there is no space");
		check_read(PKS_CONSUMER_OS, &label, pks_data, size, 0, size, 0);
		report_code(pks_remove(PKS_CONSUMER_OS, &label), H_SUCCESS, "REMOVE");
	}
	for (n = 0; n < written; n++) {
		format_text(name, sizeof(name), "fill%02u", n);
		pks_label_set(&other, PKS_CONSUMER_OS, name);
		report_code(pks_remove(PKS_CONSUMER_OS, &other), H_SUCCESS, "REMOVE %s", name);
	}
	report_equal(pks_used_space(), used, "space is as before");
}
STUB_TEST("pks_space", test_pks_space, "pks", true, "the space that objects take");
