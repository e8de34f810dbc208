// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the device tree announces. Options say what this partition must see:
 *	pks=0|1			hcall-pks must be absent or present
 *	secure-boot=N		ibm,secure-boot must be N; none: must be absent
 *	trusted-boot=N		the same for ibm,trusted-boot
 *	cas=1			look at the tree after ibm,client-architecture-support
 */
#include "hcall.h"
#include "platform.h"
#include "string.h"
#include "test.h"

static void list_hypertas(void)
{
	const char *p = platform.hypertas, *end = p + platform.hypertas_size;

	for (; p < end; p += strlen(p) + 1)
		report_info("hypertas %s", p);
}

static void check_property(const char *name, const char *key, int32_t value)
{
	const char *expected = arg_text(key);
	uint64_t number;

	if (!expected) {
		report_info("%s is %d (-1: absent); nothing expected of it", name, value);
	} else if (!strcmp(expected, "none")) {
		report_equal((uint64_t)(int64_t)value, ~0ull, "%s is absent", name);
	} else {
		number = arg_number(key, 0);
		report_equal((uint64_t)(int64_t)value, number, "%s is %lu", name, number);
	}
}

static void test_dt(void)
{
	bool has_pks = platform_has_hypertas("hcall-pks");

	if (platform.cas_done)
		report_equal(platform.cas_result, 0,
			     "ibm,client-architecture-support is granted");
	report(platform_has_hypertas("hcall-term"), "hcall-term is announced by QEMU itself");
	report(!platform_has_hypertas("hcall-pk") && !platform_has_hypertas("call-pks"),
	       "names are compared whole");
	if (arg_text("pks"))
		report_equal(has_pks, arg_number("pks", 0), "hcall-pks as expected");
	else
		report_info("hcall-pks is %s", has_pks ? "announced" : "not announced");
	check_property("ibm,secure-boot", "secure-boot", platform.secure_boot);
	check_property("ibm,trusted-boot", "trusted-boot", platform.trusted_boot);
	report(!platform.has_firmware_password,
	       "/chosen/ibm,plpks-pw is for kexec; no firmware makes it");
	list_hypertas();
}
STUB_TEST("dt", test_dt, "self dt", true, "what the device tree announces");
