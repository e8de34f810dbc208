// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Ultracalls, and MSR[S]: who can set it, what carries it, what ends it. Without the
 * device "sc 2" is a system call; "secure" needs a host that plays the ultravisor as it
 * is told in the comments here.
 */
#include "asm_defs.h"
#include "exception.h"
#include "hcall.h"
#include "mmu.h"
#include "platform.h"
#include "smp.h"
#include "string.h"
#include "test.h"

#define SRR1_LEV	0x300000ull	/* ISA 3.1: of sc */

#define VECTOR_FP_UNAVAILABLE	0x800
#define VECTOR_SCV		0x17000

#define SPR_FSCR	153
#define FSCR_SCV	(1ull << 12)
#define FSCR_EBB	(1ull << 7)

static uint64_t mfmsr(void)
{
	uint64_t msr;

	asm volatile("mfmsr %0" : "=r"(msr) : : "memory");
	return msr;
}

static uint64_t secure_bit(void)
{
	return mfmsr() & MSR_S;
}

static void ucall_kernel(void *arg)
{
	ucall_raw(arg);
}

static void ucall_user(void *arg)
{
	ucall_raw_user(arg);
}

static void check_unknown(void (*call)(void *arg), long expected, const char *from)
{
	struct hcall_regs regs;
	uint64_t vector;

	hcall_fill(&regs, UV_READ_SCOM, NULL, 0);
	vector = exception_try(call, &regs);
	if (expected < 0)
		expected = vector == 0;
	if (expected) {
		report_equal(vector, 0, "an ultracall from %s state returns", from);
		report_code((int64_t)regs.r[3], U_FUNCTION, "and nobody knows it");
	} else {
		report_equal(vector, VECTOR_SYSTEM_CALL, "sc 2 from %s state is sc 0", from);
		report_equal(this_cpu->frame.msr & SRR1_LEV, 0, "in SRR1, too");
	}
}

/* ucall=1: there is the device; ucall=0: there is none; else: either. */
static void test_ucall(void)
{
	long expected = (long)arg_number("ucall", 2);

	expected = expected < 2 ? expected : -1;
	check_unknown(ucall_kernel, expected, "supervisor");
	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	check_unknown(ucall_user, expected, "problem");
	report_equal(secure_bit(), 0, "MSR[S] is clear");
}
STUB_TEST("ucall", test_ucall, "self", true, "sc 2 that nobody answers");

/* Every instruction that loads the MSR, with the other value of S. */
static void set_msr_by_mtmsrd(uint64_t msr)
{
	asm volatile("mtmsrd %0" : : "r"(msr) : "memory");
}

static void set_msr_by_mtmsr(uint64_t msr)
{
	asm volatile("mtmsr %0" : : "r"(msr) : "memory");
}

static void set_msr_by_rfid(uint64_t msr)
{
	uint64_t there;

	asm volatile("bcl 20,31,1f; 1: mflr %0; addi %0,%0,2f-1b;"
		     "mtsrr0 %0; mtsrr1 %1; rfid; 2:"
		     : "=&b"(there) : "r"(msr) : "lr", "memory");
}

static void set_msr_by_rfscv(uint64_t msr)
{
	uint64_t there;

	asm volatile("bcl 20,31,1f; 1: mflr %0; addi %0,%0,2f-1b;"
		     "mtlr %0; mtctr %1; .long 0x4c0000a4; 2:"
		     : "=&b"(there) : "r"(msr) : "lr", "ctr", "memory");
}

/* Its facility is the guest's to enable. */
static void set_msr_by_rfebb(uint64_t msr)
{
	uint64_t fscr, there;

	asm volatile("mfspr %0,%1" : "=r"(fscr) : "i"(SPR_FSCR));
	asm volatile("mtspr %0,%1; isync" : : "i"(SPR_FSCR), "r"(fscr | FSCR_EBB) : "memory");
	asm volatile("bcl 20,31,1f; 1: mflr %0; addi %0,%0,2f-1b;"
		     "mtspr 805,%0; mtsrr1 %1; .long 0x4c000924; 2:"
		     : "=&b"(there) : "r"(msr) : "lr", "memory");
	asm volatile("mtspr %0,%1; isync" : : "i"(SPR_FSCR), "r"(fscr) : "memory");
}

static void hrfid(void *arg)
{
	uint64_t there;

	asm volatile("bcl 20,31,1f; 1: mflr %0; addi %0,%0,2f-1b;"
		     "mtspr 314,%0; mtspr 315,%1; hrfid; 2:"
		     : "=&b"(there) : "r"(*(uint64_t *)arg) : "lr", "memory");
}

static const struct {
	void (*set)(uint64_t msr);
	const char *name;
	bool needs_power9;
} means[] = {
	{ set_msr_by_mtmsrd, "mtmsrd", false },
	{ set_msr_by_mtmsr, "mtmsr", false },
	{ set_msr_by_rfid, "rfid", false },
	{ set_msr_by_rfscv, "rfscv", true },
	{ set_msr_by_rfebb, "rfebb", false },
};

static void check_forging(uint64_t secure)
{
	uint64_t msr;
	unsigned int n;

	for (n = 0; n < sizeof(means) / sizeof(means[0]); n++) {
		if (means[n].needs_power9 && !platform.has_radix)
			continue;
		means[n].set(mfmsr() ^ MSR_S);
		report_equal(secure_bit(), secure, "%s does not change MSR[S]", means[n].name);
	}
	msr = mfmsr() ^ MSR_S;
	report(exception_try(hrfid, &msr) != 0, "hrfid is the hypervisor's");
	report_equal(secure_bit(), secure, "and does not change MSR[S]");
}

static void do_trap(void *arg)
{
	(void)arg;
	asm volatile("trap");
}

static void do_illegal(void *arg)
{
	(void)arg;
	asm volatile(".long 0");
}

static void do_sc(void *arg)
{
	(void)arg;
	asm volatile("li 0,0; sc" : : : "r0");
}

static void do_float(void *arg)
{
	/* Data, because the image has no such instruction, as check-image.sh sees to. */
	static const uint32_t code[] = {
		0xfc01102a,	/* fadd f0,f1,f2 */
		0x4e800020,	/* blr */
	};

	(void)arg;
	((void (*)(void))(uintptr_t)code)();
}

static void do_load(void *arg)
{
	(void)*(volatile uint64_t *)arg;
}

static void do_reset(void *arg)
{
	struct hcall_regs regs;

	(void)arg;
	HCALL(&regs, H_SIGNAL_SYS_RESET, platform.cpu_server[0]);
	for (;;)
		cpu_relax();
}

static const struct {
	void (*raise)(void *arg);
	uint64_t vector;
	const char *name;
} interrupts[] = {
	{ do_trap, VECTOR_PROGRAM, "a trap" },
	{ do_illegal, VECTOR_PROGRAM, "an illegal instruction" },
	{ do_sc, VECTOR_SYSTEM_CALL, "a system call" },
	{ do_float, VECTOR_FP_UNAVAILABLE, "floating point" },
	{ do_load, VECTOR_MACHINE_CHECK, "a machine check" },
	{ do_reset, VECTOR_SYSTEM_RESET, "a system reset interrupt" },
};

/* The decrementer's handler goes back by rfid. */
static void check_decrementer(uint64_t secure)
{
	uint64_t ticks = 100;

	asm volatile("mtdec %0" : : "r"(ticks));
	set_msr_by_mtmsrd(mfmsr() | MSR_EE);
	do {
		asm volatile("mfdec %0" : "=r"(ticks) : : "memory");
	} while (ticks <= 100 || (int32_t)ticks < 0);
	set_msr_by_mtmsrd(mfmsr() & ~(uint64_t)MSR_EE);
	report_equal(secure_bit(), secure, "MSR[S] after a decrementer interrupt");
}

/* scv has a vector of its own, and hides the MSR in CTR: no SRR1. */
static void check_scv(uint64_t secure)
{
	static const uint32_t code[] = {
		0x7c6000a6,	/* mfmsr r3 */
		0x7c8902a6,	/* mfctr r4 */
		0x4c0000a4,	/* rfscv */
	};
	volatile uint32_t *vector = (volatile uint32_t *)VECTOR_SCV;
	register uint64_t inside asm("r3");
	register uint64_t before asm("r4");
	uint64_t fscr, in_handler, in_ctr;
	unsigned int n;

	if (!platform.has_radix)
		return;
	for (n = 0; n < 3; n++) {
		vector[n] = code[n];
		asm volatile("dcbst 0,%0; sync; icbi 0,%0; isync" : : "r"(&vector[n]) : "memory");
	}
	asm volatile("mfspr %0,%1" : "=r"(fscr) : "i"(SPR_FSCR));
	asm volatile("mtspr %0,%1; isync" : : "i"(SPR_FSCR), "r"(fscr | FSCR_SCV) : "memory");
	asm volatile(".long 0x44000001"		/* scv 0 */
		     : "=r"(inside), "=r"(before) : : "lr", "ctr", "memory");
	in_handler = inside;
	in_ctr = before;
	asm volatile("mtspr %0,%1; isync" : : "i"(SPR_FSCR), "r"(fscr) : "memory");
	report_equal(in_handler & MSR_S, secure, "MSR[S] in the handler of scv");
	report_equal(in_ctr & MSR_S, secure, "in its CTR");
	report_equal(secure_bit(), secure, "and after rfscv");
}

static void check_interrupts(uint64_t secure)
{
	uint64_t vector;
	unsigned int n;

	for (n = 0; n < sizeof(interrupts) / sizeof(interrupts[0]); n++) {
		vector = exception_try(interrupts[n].raise, (void *)(1ull << 56));
		report(vector == interrupts[n].vector || n == 1 || n == 4,
		       "%s leads to 0x%lx", interrupts[n].name, vector);
		/* exception_try() goes on in the handler's state. */
		report_equal(secure_bit(), secure, "MSR[S] in the handler of %s",
			     interrupts[n].name);
		report_equal(this_cpu->frame.msr & MSR_S, secure, "and in its SRR1");
	}
	check_decrementer(secure);
	check_scv(secure);
}

static void check_user(uint64_t secure, int64_t code)
{
	struct hcall_regs regs;

	if (!mmu_enable_radix()) {
		report_skip("problem state needs a radix MMU: -cpu power9 or newer");
		return;
	}
	hcall_fill(&regs, UV_SHARE_PAGE, NULL, 0);
	ucall_raw_user(&regs);
	report_code((int64_t)regs.r[3], U_PERMISSION, "a kernel's ultracall from problem state");
	hcall_fill(&regs, UV_ESMB_GET_FILE, NULL, 0);
	ucall_raw_user(&regs);
	report_equal(regs.r[3], (uint64_t)code, "a program's ultracall from problem state");
	hcall_fill(&regs, UV_READ_SCOM, NULL, 0);
	ucall_raw_user(&regs);
	report_code((int64_t)regs.r[3], U_FUNCTION, "one that nobody knows");
	report_equal(secure_bit(), secure, "MSR[S] after problem state");
}

static void check_nested(void)
{
	static const uint64_t numbers[] = {
		H_SET_PARTITION_TABLE, H_ENTER_NESTED, H_TLB_INVALIDATE, H_COPY_TOFROM_GUEST,
		H_GUEST_GET_CAPABILITIES, H_GUEST_CREATE, H_GUEST_RUN_VCPU,
	};
	struct hcall_regs regs;
	unsigned int n;

	for (n = 0; n < sizeof(numbers) / sizeof(numbers[0]); n++)
		report_code(HCALL(&regs, numbers[n], 0, 0, 0, 0), H_FUNCTION,
			    "0x%lx, for nested guests", numbers[n]);
}

static void record_msr(void *arg, unsigned int index)
{
	uint64_t *msr = arg;
	struct hcall_regs regs;

	msr[index] = mfmsr();
	/* The host sees it, too: that of an ultracall that it announced. */
	UCALL(&regs, UV_SHARE_PAGE, index, 1);
	msr[index] |= (uint64_t)(regs.r[3] != 0);
}

static void check_cpus(uint64_t secure, const char *when)
{
	uint64_t msr[MAX_CPUS] = { 0 };
	unsigned int n, count = smp_count();

	report(smp_run(count, record_msr, msr), "%u CPUs run, %s", count, when);
	for (n = 0; n < count; n++) {
		report_equal(msr[n] & MSR_S, secure, "MSR[S] of CPU %u", n);
		report(msr[n] != 0 && !(msr[n] & MSR_EE), "its ultracall was answered");
	}
}

#define BUSY_READY	1
#define BUSY_LEAVE	2

struct busy {
	volatile uint32_t state;
	int64_t code;
};

/* CPU 0 asks to become secure while CPU 1 runs. */
static void enter_while_busy(void *arg, unsigned int index)
{
	struct busy *busy = arg;
	struct hcall_regs regs;

	if (index == 1) {
		busy->state = BUSY_READY;
		while (busy->state != BUSY_LEAVE)
			cpu_relax();
		return;
	}
	if (index)
		return;
	while (busy->state != BUSY_READY)
		cpu_relax();
	busy->code = UCALL(&regs, UV_ESM, (uintptr_t)ucall_landing, 1);
	busy->state = BUSY_LEAVE;
}

/*
 * The host announces UV_SHARE_PAGE, UV_ESM (lost_status -5), and UV_ESMB_GET_FILE for
 * problem state too. It answers UV_SHARE_PAGE with 0, UV_ESMB_GET_FILE with 42, and
 * UV_ESM, with r5 set to 7, by going on at r4 with MSR[S] set and MSR[EE] clear.
 */
static void test_secure(void)
{
	struct busy busy = { 0, 0 };
	struct hcall_regs regs;

	report_equal(secure_bit(), 0, "MSR[S] is clear");
	check_forging(0);
	check_interrupts(0);
	check_user(0, 42);
	check_cpus(0, "not secure");
	if (smp_count() > 1) {
		report(smp_run(2, enter_while_busy, &busy), "another CPU runs");
		report_code(busy.code, U_RETRY, "so this one does not become secure");
		report_equal(secure_bit(), 0, "MSR[S] is clear");
		check_cpus(0, "still not secure");
	}

	report(smp_wait(), "all other CPUs stop");
	hcall_fill(&regs, UV_ESM, (const uint64_t[]){ (uintptr_t)ucall_landing, 1 }, 2);
	set_msr_by_mtmsrd(mfmsr() | MSR_EE);
	ucall_raw(&regs);
	report_equal(mfmsr() & MSR_EE, 0, "MSR[EE] was cleared");
	report_equal(secure_bit(), MSR_S, "MSR[S] is set");
	report_equal(regs.r[0], 1, "went on where it was told to");
	report_equal(regs.r[5], 7, "with r5 as it was told");
	report_equal(regs.r[6], HCALL_POISON(6), "and r6 as it was");

	check_forging(MSR_S);
	check_interrupts(MSR_S);
	check_user(MSR_S, 42);
	check_nested();
	check_cpus(MSR_S, "secure");
	check_cpus(MSR_S, "once more");
	report_equal(secure_bit(), MSR_S, "MSR[S] is set to the end");
}
STUB_TEST("secure", test_secure, "secure", false, "MSR[S] under an ultravisor");
