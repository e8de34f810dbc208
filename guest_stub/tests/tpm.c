// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * H_TPM_COMM against a real TPM. Structures and codes are those of the TPM 2.0 Library,
 * parts 2 and 3. Options:
 *	max=N		the greatest request that passes (4096; a pty takes less)
 *	n=N		samples of tpm_bench (2000), each CPU's calls in tpm_cpus (50)
 *	run-ms=N	how long tpm_watch calls at most (5000)
 */
#include "console.h"
#include "hcall.h"
#include "mmu.h"
#include "platform.h"
#include "smp.h"
#include "string.h"
#include "test.h"
#include "timebase.h"

#define CANARY		0x5c
#define HEAD		10u
#define BUFFER		TPM_COMM_BUFFER_SIZE
#define EXECUTE		TPM_COMM_OP_EXECUTE
#define CLOSE		TPM_COMM_OP_CLOSE_SESSION

#define TPM_ST_NO_SESSIONS	0x8001
#define TPM_ST_SESSIONS		0x8002
#define TPM_CC_FLUSH_CONTEXT	0x165
#define TPM_CC_START_SESSION	0x176
#define TPM_CC_GET_CAPABILITY	0x17a
#define TPM_CC_GET_RANDOM	0x17b
#define TPM_CC_PCR_READ		0x17e
#define TPM_CC_PCR_EXTEND	0x182
#define TPM_RC_COMMAND_SIZE	0x142
#define TPM_RC_COMMAND_CODE	0x143
#define TPM_RH_NULL		0x40000007
#define TPM_RS_PW		0x40000009
#define TPM_ALG_SHA256		0x000b
#define TPM_ALG_NULL		0x0010
#define TPM_SE_POLICY		1
#define TPM_CAP_HANDLES		1
#define LOADED_SESSIONS		0x02000000
#define DEBUG_PCR		16	/* extended and reset by anybody */
#define RANDOM_SIZE		16

struct tpm_io {
	uint8_t request[BUFFER];
	uint8_t response[2 * BUFFER];
} __attribute__((aligned(4096)));

static struct tpm_io io[MAX_CPUS];

static int64_t execute_at(const void *request, uint64_t request_size, void *response,
			  uint64_t response_size, uint64_t *length)
{
	struct hcall_regs regs;
	int64_t code = HCALL(&regs, H_TPM_COMM, EXECUTE, (uintptr_t)request, request_size,
			     (uintptr_t)response, response_size);

	*length = regs.r[4];
	return code;
}

/* Finishes the command in io and sends it: the response's TPM code, or -1. */
static int64_t tpm_call(struct tpm_io *with, uint16_t tag, uint32_t command, uint32_t size)
{
	uint64_t length;

	store_be16(with->request, tag);
	store_be32(with->request + 2, size);
	store_be32(with->request + 6, command);
	memset(with->response, CANARY, sizeof(with->response));
	if (execute_at(with->request, size, with->response, BUFFER, &length) != H_SUCCESS ||
	    length < HEAD || length > BUFFER || load_be32(with->response + 2) != length)
		return -1;
	return load_be32(with->response + 6);
}

static uint32_t random_command(uint8_t *at)
{
	store_be16(at, TPM_ST_NO_SESSIONS);
	store_be32(at + 2, HEAD + 2);
	store_be32(at + 6, TPM_CC_GET_RANDOM);
	store_be16(at + 10, RANDOM_SIZE);
	return HEAD + 2;
}

/* False, and a skip, where the partition has no TPM. */
static bool tpm_there(void)
{
	struct hcall_regs regs;
	int64_t code = HCALL(&regs, H_TPM_COMM, CLOSE);

	if (code == H_FUNCTION) {
		report_skip("the partition has no TPM");
		return false;
	}
	return report_code(code, H_SUCCESS, "CLOSE without a session");
}

static void test_tpm_random(void)
{
	uint8_t before[RANDOM_SIZE], *at = io[0].response;
	uint64_t length;
	unsigned int n;
	uint32_t size;

	if (!tpm_there())
		return;
	memset(before, 0, sizeof(before));
	for (n = 0; n < 4; n++) {
		size = random_command(io[0].request);
		memset(io[0].response, CANARY, sizeof(io[0].response));
		/* The last time with both in one buffer. */
		if (n == 3) {
			random_command(at);
			report_code(execute_at(at, size, at, BUFFER, &length), H_SUCCESS,
				    "GetRandom, response over the request");
		} else {
			report_code(execute_at(io[0].request, size, at, BUFFER, &length),
				    H_SUCCESS, "GetRandom");
		}
		report_equal(length, HEAD + 2 + RANDOM_SIZE, "r4 is the response's size");
		report_equal(load_be16(at), TPM_ST_NO_SESSIONS, "its tag");
		report_equal(load_be32(at + 2), length, "the size in it");
		report_equal(load_be32(at + 6), 0, "its code");
		report_equal(load_be16(at + HEAD), RANDOM_SIZE, "so many random bytes");
		report(memcmp(at + HEAD + 2, before, RANDOM_SIZE), "others than before");
		report(memory_is(at + length, CANARY, sizeof(io[0].response) - length),
		       "nothing is written behind the response");
		memcpy(before, at + HEAD + 2, RANDOM_SIZE);
	}
}
STUB_TEST("tpm_random", test_tpm_random, "tpm", true, "GetRandom by H_TPM_COMM");

/* What the TPM refuses is no error of the call. */
static void test_tpm_error(void)
{
	uint64_t length, greatest = arg_number("max", BUFFER);
	uint32_t size;

	if (!tpm_there())
		return;
	size = random_command(io[0].request);
	store_be32(io[0].request + 2, size + 1);
	report_code(execute_at(io[0].request, size, io[0].response, BUFFER, &length), H_SUCCESS,
		    "a command that claims a byte too many");
	report_equal(length, HEAD, "gets a head");
	report_equal(load_be32(io[0].response + 6), TPM_RC_COMMAND_SIZE, "with the TPM's code");
	report_equal(tpm_call(&io[0], TPM_ST_NO_SESSIONS, 0x1ff, HEAD), TPM_RC_COMMAND_CODE,
		     "an unknown command");
	memset(io[0].request, 0, BUFFER);
	random_command(io[0].request);
	report_code(execute_at(io[0].request, greatest, io[0].response, BUFFER, &length),
		    H_SUCCESS, "the greatest request");
	report_equal(load_be32(io[0].response + 6), TPM_RC_COMMAND_SIZE, "is passed on whole");
}
STUB_TEST("tpm_error", test_tpm_error, "tpm", true, "errors of the TPM are not the call's");

static void refuse(int64_t code, uint64_t op, uint64_t request, uint64_t request_size,
		   uint64_t response, uint64_t response_size, const char *what)
{
	struct hcall_regs regs;

	memset(io[0].response, CANARY, sizeof(io[0].response));
	report_code(HCALL(&regs, H_TPM_COMM, op, request, request_size, response, response_size),
		    code, "%s", what);
	report(regs.r[4] == op && regs.r[5] == request && regs.r[6] == request_size &&
	       regs.r[7] == response && regs.r[8] == response_size,
	       "leaves the registers alone");
	report(memory_is(io[0].response, CANARY, sizeof(io[0].response)), "and the buffer");
}

static void test_tpm_bad(void)
{
	static const uint64_t operations[] = {
		0, 3, 255, 1ull << 32 | EXECUTE, 1ull << 32 | CLOSE, ~0ull,
	};
	static const uint64_t request_sizes[] = {
		0, 1, HEAD - 1, BUFFER + 1, 1ull << 32 | 12, 1ull << 63, ~0ull,
	};
	static const uint64_t response_sizes[] = {
		0, 1, BUFFER - 1, 1ull << 32, 1ull << 32 | BUFFER, ~0ull,
	};
	uint64_t in = (uintptr_t)io[0].request, out = (uintptr_t)io[0].response;
	uint64_t end = platform.ram_end, size;
	const uint64_t outside[] = {
		end, platform.mmio_base, 0x0ffffffffffffff0ull, 0x0800000000000000ull,
	};
	unsigned int n;

	if (!tpm_there())
		return;
	size = random_command(io[0].request);
	for (n = 0; n < sizeof(operations) / sizeof(operations[0]); n++)
		refuse(H_PARAMETER, operations[n], in, size, out, BUFFER, "an operation");
	for (n = 0; n < sizeof(outside) / sizeof(outside[0]); n++) {
		refuse(H_P2, EXECUTE, outside[n], size, out, BUFFER, "a request outside RAM");
		refuse(H_P4, EXECUTE, in, size, outside[n], BUFFER, "a response outside RAM");
	}
	refuse(H_P2, EXECUTE, end - size + 1, size, out, BUFFER, "a request over the end of RAM");
	refuse(H_P2, EXECUTE, end - 1, BUFFER, out, BUFFER, "the same, of the greatest size");
	refuse(H_P4, EXECUTE, in, size, end - BUFFER + 1, BUFFER,
	       "a response buffer over the end of RAM");
	refuse(H_P4, EXECUTE, in, size, end - 1, BUFFER, "and by far");
	refuse(H_P4, EXECUTE, in, size, end - BUFFER, 2 * BUFFER, "a large one over the end");
	for (n = 0; n < sizeof(request_sizes) / sizeof(request_sizes[0]); n++)
		refuse(H_P3, EXECUTE, in, request_sizes[n], out, BUFFER, "a size of the request");
	for (n = 0; n < sizeof(response_sizes) / sizeof(response_sizes[0]); n++)
		refuse(H_P5, EXECUTE, in, size, out, response_sizes[n],
		       "a size of the response buffer");
	refuse(H_PARAMETER, 3, end, 0, end, 0, "all bad: the operation first");
	refuse(H_P2, EXECUTE, end, 0, end, 0, "then the request");
	refuse(H_P3, EXECUTE, in, 0, end, 0, "its size");
	refuse(H_P4, EXECUTE, in, size, end, 0, "the response");
	/* CLOSE does not look at the others. */
	report_code(tpm_call(&io[0], TPM_ST_NO_SESSIONS, 0x1ff, HEAD), TPM_RC_COMMAND_CODE,
		    "the TPM still answers");
	refuse(H_SUCCESS, CLOSE, end, 0, end, 0, "CLOSE with bad arguments that are not its");
}
STUB_TEST("tpm_bad", test_tpm_bad, "tpm", true, "every bound of every argument");

/* Buffers in the last bytes of RAM, large buffers, ignored bits of addresses. */
static void test_tpm_edges(void)
{
	uint8_t *end = (uint8_t *)(uintptr_t)platform.ram_end;
	uint64_t length, top = 0xf000000000000000ull;
	uint32_t size;

	if (!tpm_there())
		return;
	size = random_command(io[0].request);
	memset(end - 2 * BUFFER, CANARY, 2 * BUFFER);
	report_code(execute_at(io[0].request, size, end - BUFFER, BUFFER, &length), H_SUCCESS,
		    "a response buffer that ends where RAM ends");
	report_equal(load_be32(end - BUFFER + 2), length, "has the response");
	report(memory_is(end - 2 * BUFFER, CANARY, BUFFER), "and nothing is before it");
	random_command(end - size);
	report_code(execute_at(end - size, size, io[0].response, BUFFER, &length), H_SUCCESS,
		    "a request that ends where RAM ends");
	report_code(execute_at(io[0].request, size, end - 16 * BUFFER, 16 * BUFFER, &length),
		    H_SUCCESS, "a buffer of 64 KiB");
	report_code(execute_at((void *)((uintptr_t)io[0].request | top), size,
			       (void *)((uintptr_t)io[0].response | top), BUFFER, &length),
		    H_SUCCESS, "four bits of an address are ignored");
	memset(io[0].response, CANARY, sizeof(io[0].response));
	report_code(execute_at(io[0].request, size, io[0].response + 4093, BUFFER, &length),
		    H_SUCCESS, "a buffer over a page's end");
	report_equal(load_be32(io[0].response + 4093 + 2), length, "has the response");
	report(memory_is(io[0].response, CANARY, 4093), "and nothing is before it");
}
STUB_TEST("tpm_edges", test_tpm_edges, "tpm", true, "buffers where RAM and pages end");

static struct {
	volatile uint64_t wrong;
	struct barrier barrier;
	unsigned int count;
	uint64_t calls;
	uint8_t last[MAX_CPUS][RANDOM_SIZE];
} many;

static void many_work(void *arg, unsigned int index)
{
	struct tpm_io *mine = &io[index];
	struct hcall_regs regs;
	uint64_t n, length;
	uint32_t size;

	(void)arg;
	barrier_wait(&many.barrier, many.count);
	for (n = 0; n < many.calls; n++) {
		size = random_command(mine->request);
		memset(mine->response, CANARY, sizeof(mine->response));
		if (execute_at(mine->request, size, mine->response, BUFFER, &length) ||
		    length != HEAD + 2 + RANDOM_SIZE || load_be32(mine->response + 6) ||
		    !memory_is(mine->response + length, CANARY, 2 * BUFFER - length) ||
		    !memcmp(mine->response + HEAD + 2, many.last[index], RANDOM_SIZE))
			atomic_add(&many.wrong, 1);
		memcpy(many.last[index], mine->response + HEAD + 2, RANDOM_SIZE);
		/* Closing what another CPU uses costs it its contexts, not its command. */
		if (index == 1 && n % 8 == 7 && HCALL(&regs, H_TPM_COMM, CLOSE))
			atomic_add(&many.wrong, 1);
	}
}

static void test_tpm_cpus(void)
{
	unsigned int a, b, same = 0;

	many.count = smp_count();
	if (many.count < 2) {
		report_skip("one CPU: start QEMU with -smp 4");
		return;
	}
	if (!tpm_there())
		return;
	many.calls = arg_number("n", 50);
	many.wrong = 0;
	report(smp_run(many.count, many_work, NULL), "%u CPUs, %lu commands each", many.count,
	       many.calls);
	report_equal(many.wrong, 0, "each gets its own response");
	for (a = 0; a < many.count; a++)
		for (b = 0; b < a; b++)
			same += !memcmp(many.last[a], many.last[b], RANDOM_SIZE);
	report_equal(same, 0, "no two the same");
}
STUB_TEST("tpm_cpus", test_tpm_cpus, "tpm", true, "all CPUs at once");

/* A policy session without salt and binding; its handle, or 0. */
static uint32_t start_session(void)
{
	uint8_t *p = io[0].request + HEAD;

	store_be32(p, TPM_RH_NULL);
	store_be32(p + 4, TPM_RH_NULL);
	store_be16(p + 8, 16);
	memset(p + 10, 0x11, 16);
	store_be16(p + 26, 0);
	p[28] = TPM_SE_POLICY;
	store_be16(p + 29, TPM_ALG_NULL);
	store_be16(p + 31, TPM_ALG_SHA256);
	if (tpm_call(&io[0], TPM_ST_NO_SESSIONS, TPM_CC_START_SESSION, HEAD + 33))
		return 0;
	return load_be32(io[0].response + HEAD);
}

/* How many sessions are loaded; -1 if the TPM does not say. */
static int64_t count_sessions(void)
{
	uint8_t *p = io[0].request + HEAD;

	store_be32(p, TPM_CAP_HANDLES);
	store_be32(p + 4, LOADED_SESSIONS);
	store_be32(p + 8, 64);
	if (tpm_call(&io[0], TPM_ST_NO_SESSIONS, TPM_CC_GET_CAPABILITY, HEAD + 12))
		return -1;
	return load_be32(io[0].response + HEAD + 5);
}

static void test_tpm_close(void)
{
	struct hcall_regs regs;
	unsigned int n;

	if (!tpm_there())
		return;
	report_equal((uint64_t)count_sessions(), 0, "no session is loaded");
	for (n = 0; n < 3; n++) {
		report(start_session() && start_session(), "two sessions");
		report_equal((uint64_t)count_sessions(), 2, "are loaded");
		report_code(HCALL(&regs, H_TPM_COMM, CLOSE), H_SUCCESS, "CLOSE");
		report_equal((uint64_t)count_sessions(), 0, "frees them");
	}
	report_code(HCALL(&regs, H_TPM_COMM, CLOSE), H_SUCCESS, "CLOSE");
	report_code(HCALL(&regs, H_TPM_COMM, CLOSE), H_SUCCESS, "and once more");
}
STUB_TEST("tpm_close", test_tpm_close, "tpm", true, "CLOSE frees what the session loaded");

/* The SHA-256 bank's debug PCR; NULL if the TPM does not say. */
static const uint8_t *read_pcr(void)
{
	uint8_t *p = io[0].request + HEAD;

	store_be32(p, 1);
	store_be16(p + 4, TPM_ALG_SHA256);
	p[6] = 3;
	p[7] = 0;
	p[8] = 0;
	p[9] = 1 << (DEBUG_PCR - 16);
	if (tpm_call(&io[0], TPM_ST_NO_SESSIONS, TPM_CC_PCR_READ, HEAD + 10))
		return NULL;
	return io[0].response + 30;
}

static bool extend_pcr(int byte)
{
	uint8_t *p = io[0].request + HEAD;

	store_be32(p, DEBUG_PCR);
	store_be32(p + 4, 9);
	store_be32(p + 8, TPM_RS_PW);
	memset(p + 12, 0, 5);
	store_be32(p + 17, 1);
	store_be16(p + 21, TPM_ALG_SHA256);
	memset(p + 23, byte, 32);
	return !tpm_call(&io[0], TPM_ST_SESSIONS, TPM_CC_PCR_EXTEND, HEAD + 55);
}

static void tell_pcr(void)
{
	const uint8_t *pcr = read_pcr();
	unsigned int n;

	if (!report(pcr, "the PCR can be read"))
		return;
	console_printf("# tpm pcr ");
	for (n = 0; n < 32; n++)
		console_printf("%02x", pcr[n]);
	console_printf("\n");
}

static void test_tpm_extend(void)
{
	struct hcall_regs regs;

	if (!tpm_there())
		return;
	report(extend_pcr('h'), "PCR 16 is extended");
	tell_pcr();
	report_code(HCALL(&regs, H_TPM_COMM, CLOSE), H_SUCCESS, "CLOSE");
}
STUB_TEST("tpm_extend", test_tpm_extend, "tpm_pcrs", false,
	  "extends PCR 16 of a TPM that others look into");

static void test_tpm_pcr(void)
{
	struct hcall_regs regs;

	if (!tpm_there())
		return;
	tell_pcr();
	report_code(HCALL(&regs, H_TPM_COMM, CLOSE), H_SUCCESS, "CLOSE");
}
STUB_TEST("tpm_pcr", test_tpm_pcr, "tpm_pcrs", false, "shows PCR 16");

/* A reset closes the session. It does not reset the TPM: PCR 16 says which boot it is. */
static void test_tpm_reset(void)
{
	const uint8_t *pcr;

	if (!tpm_there())
		return;
	pcr = read_pcr();
	if (!report(pcr, "the PCR can be read"))
		return;
	if (memory_is(pcr, 0, 32)) {
		report(extend_pcr('r'), "the first boot extends it");
		report(start_session() && start_session(), "and leaves two sessions");
		stub_reboot();
	}
	report(true, "the second boot finds it extended");
	report_equal((uint64_t)count_sessions(), 0, "and no session");
}
STUB_TEST("tpm_reset", test_tpm_reset, "tpm_reset", false, "a reset closes the session");

static void test_tpm_user(void)
{
	uint64_t in = (uintptr_t)io[0].request, out = (uintptr_t)io[0].response;
	struct hcall_regs regs;
	uint32_t size;

	if (!tpm_there())
		return;
	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	size = random_command(io[0].request);
	memset(io[0].response, CANARY, sizeof(io[0].response));
	hcall_fill(&regs, H_TPM_COMM, (const uint64_t[]){ EXECUTE, in, size, out, BUFFER }, 5);
	hcall_raw_user(&regs);
	report_code((int64_t)regs.r[3], H_PRIVILEGE, "EXECUTE from problem state");
	report(memory_is(io[0].response, CANARY, sizeof(io[0].response)), "writes nothing");
	hcall_fill(&regs, H_TPM_COMM, (const uint64_t[]){ CLOSE }, 1);
	hcall_raw_user(&regs);
	report_code((int64_t)regs.r[3], H_PRIVILEGE, "CLOSE from problem state");
}
STUB_TEST("tpm_user", test_tpm_user, "tpm", true, "problem state gets H_PRIVILEGE");

static void test_tpm_none(void)
{
	struct hcall_regs regs;
	uint64_t length;
	uint32_t size = random_command(io[0].request);

	report_code(HCALL(&regs, H_TPM_COMM, CLOSE), H_FUNCTION, "CLOSE");
	report_code(execute_at(io[0].request, size, io[0].response, BUFFER, &length), H_FUNCTION,
		    "EXECUTE");
	report_code(HCALL(&regs, H_TPM_COMM, 3), H_FUNCTION, "before bad arguments");
}
STUB_TEST("tpm_none", test_tpm_none, "tpm_none", false, "a partition without a TPM");

/* One line a command until a command answers 0 again: what a host does to the TPM shows. */
static void test_tpm_watch(void)
{
	uint64_t deadline = timebase() + timebase_from_ms(arg_number("run-ms", 5000));
	uint64_t length, start;
	bool has_failed = false;
	struct hcall_regs regs;
	uint32_t size;
	int64_t code;

	if (!tpm_there())
		return;
	size = random_command(io[0].request);
	console_printf("# tpm ready\n");
	do {
		start = timebase();
		code = execute_at(io[0].request, size, io[0].response, BUFFER, &length);
		start = timebase() - start;
		if (code != H_SUCCESS) {
			console_printf("# tpm code=%ld ms=%lu\n", (long)code,
				       timebase_to_ns(start) / 1000000);
			has_failed = true;
		} else if (has_failed) {
			console_printf("# tpm answers again\n");
			break;
		}
		delay_ms(5);
	} while (timebase() < deadline);
	report(has_failed, "a command failed");
	report_code(code, H_SUCCESS, "and a later one did not");
	report_code(HCALL(&regs, H_TPM_COMM, CLOSE), H_SUCCESS, "CLOSE");
}
STUB_TEST("tpm_watch", test_tpm_watch, "tpm_watch", false,
	  "calls until the TPM has failed and answers again");

static uint64_t samples[20000];

static void test_tpm_bench(void)
{
	uint64_t count = arg_number("n", 2000), in = (uintptr_t)io[0].request;
	uint64_t out = (uintptr_t)io[0].response, size, n, at, value, wrong = 0;
	struct hcall_regs regs;

	if (!count || count > sizeof(samples) / sizeof(samples[0])) {
		report(false, "n is 1 to 20000");
		return;
	}
	if (!tpm_there())
		return;
	size = random_command(io[0].request);
	for (n = 0; n < count + 50; n++) {
		hcall_fill(&regs, H_TPM_COMM,
			   (const uint64_t[]){ EXECUTE, in, size, out, BUFFER }, 5);
		value = timebase();
		hcall_raw(&regs);
		value = timebase() - value;
		wrong += regs.r[3] != H_SUCCESS || load_be32(io[0].response + 6);
		if (n >= 50)
			samples[n - 50] = value;
	}
	/* Not between the calls, which come back to back. */
	for (n = 1; n < count; n++) {
		value = samples[n];
		for (at = n; at && samples[at - 1] > value; at--)
			samples[at] = samples[at - 1];
		samples[at] = value;
	}
	console_printf("# bench H_TPM_COMM n=%lu min_ns=%lu p50_ns=%lu p99_ns=%lu\n", count,
		       timebase_to_ns(samples[0]), timebase_to_ns(samples[count / 2]),
		       timebase_to_ns(samples[count - 1 - count / 100]));
	report_equal(wrong, 0, "GetRandom");
}
STUB_TEST("tpm_bench", test_tpm_bench, "tpm_bench", false, "times GetRandom");
