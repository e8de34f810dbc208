// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * UV_ESMB_GET_FILE of a secure VM (esm=1): read once, by one process, forward. The blob
 * has the file FILE_NAME of FILE_SIZE bytes, byte n of which is 7 * n + 3.
 */
#include "hcall.h"
#include "mmu.h"
#include "platform.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define FILE_NAME	"rootd"
#define FILE_SIZE	150u
#define CHUNK		64u
#define NAME_SIZE	64u
#define SPR_PID		48

struct reading {
	struct hcall_regs regs;
	char name[NAME_SIZE];
	uint64_t offset;
	int64_t code;
	bool is_user;
	bool is_right;		/* what was read is what is there, and zeros behind it */
};

static void read_file(struct reading *r)
{
	uint8_t data[CHUNK];
	unsigned int n;

	hcall_fill(&r->regs, UV_ESMB_GET_FILE, NULL, 0);
	r->regs.r[4] = r->offset;
	for (n = 0; n < 8; n++)
		r->regs.r[5 + n] = load_be64(r->name + 8 * n);
	if (r->is_user)
		ucall_raw_user(&r->regs);
	else
		ucall_raw(&r->regs);
	r->code = (int64_t)r->regs.r[3];
	for (n = 0; n < 8; n++)
		store_be64(data + 8 * n, r->regs.r[4 + n]);
	r->is_right = r->code >= 0 && r->code <= (int64_t)CHUNK;
	for (n = 0; n < CHUNK && r->is_right; n++)
		r->is_right = data[n] ==
			      (n < r->code ? (uint8_t)(7 * (r->offset + n) + 3) : 0);
}

static void be_process(uint64_t pid)
{
	asm volatile("mtspr %0,%1; isync" : : "i"(SPR_PID), "r"(pid) : "memory");
}

static void expect(const char *name, uint64_t offset, int64_t code, bool is_user,
		   const char *what)
{
	struct reading r = { .offset = offset, .is_user = is_user };

	memcpy(r.name, name, strlen(name));
	read_file(&r);
	report_equal((uint64_t)r.code, (uint64_t)code, "%s", what);
	if (code >= 0)
		report(r.is_right, "with what is in the file");
	else
		report(r.regs.r[4] == offset && r.regs.r[12] == load_be64(r.name + 56),
		       "and registers are as they were");
}

static void read_there(void *arg, unsigned int index)
{
	mmu_enter_process();
	if (index == 1)
		read_file(arg);
}

static void test_secure_files(void)
{
	static const char longest[] =
		"a-name-of-64-bytes-which-is-all-that-eight-registers-can-hold-ab";
	struct reading elsewhere = { .offset = 128, .is_user = true };
	unsigned int n;

	if (!platform.is_secure) {
		report_skip("the guest is not secure: esm=1");
		return;
	}
	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	_Static_assert(sizeof(longest) - 1 == NAME_SIZE, "eight registers");

	/* The first call for a name decides whose it is, if there is such a file or not. */
	be_process(STUB_PID);
	expect(FILE_NAME, 0, CHUNK, true, "a first piece, by a program");
	expect(FILE_NAME, 0, U_PARAMETER, true, "it is read once");
	expect(FILE_NAME, CHUNK - 1, U_PARAMETER, true, "to its last byte");
	be_process(STUB_PID + 1);
	expect(FILE_NAME, CHUNK, U_PARAMETER, false, "another process does not read on");
	expect("nosuch", 0, U_PARAMETER, false, "there is no such file");
	be_process(STUB_PID);
	expect("nosuch", 0, U_PARAMETER, false, "nor for another process");
	expect(FILE_NAME, CHUNK, CHUNK, false, "the kernel of the same process reads on");
	memcpy(elsewhere.name, FILE_NAME, strlen(FILE_NAME));
	report(smp_run(2, read_there, &elsewhere), "the same process on another CPU");
	report_equal((uint64_t)elsewhere.code, FILE_SIZE - 128, "reads the rest");
	report(elsewhere.is_right, "with what is in the file");
	expect(FILE_NAME, FILE_SIZE, 0, true, "the end");
	expect(FILE_NAME, FILE_SIZE + 1, 0, true, "and behind it");
	expect(FILE_NAME, FILE_SIZE - 1, U_PARAMETER, true, "not back again");
	expect(FILE_NAME, 65535, 0, true, "the last offset");
	expect(FILE_NAME, 65536, U_PARAMETER, true, "an offset above it");
	expect(FILE_NAME, ~0ull, U_PARAMETER, true, "the greatest offset");

	expect("", 0, U_PARAMETER, true, "no name");
	expect("/", 0, U_PARAMETER, true, "a slash");
	expect("a/b", 0, U_PARAMETER, true, "a slash in a name");
	expect("Rootd", 0, U_PARAMETER, true, "names are of one case");
	expect(longest, 0, U_PARAMETER, true, "the longest name");
	/* Twice, since the first registers a reader. */
	for (n = 0; n < 2; n++)
		expect("root", 0, U_PARAMETER, true, "the begin of a name is another's");
}
STUB_TEST("secure_files", test_secure_files, "secure_guest", false,
	  "files that the blob carries");
