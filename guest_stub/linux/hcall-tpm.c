// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A TPM behind H_TPM_COMM as Linux' own: /dev/tpm0, and /dev/tpmrm0 by its resource manager.
 *
 * Linux has no driver for the call, and user space cannot make it: from problem state it is
 * H_PRIVILEGE. With this module unmodified programs, such as tpm2-tools, reach the TPM that the
 * hypervisor has for the machine.
 *
 * The call answers at once, so the chip is a synchronous one, as that of tpm_svsm.c. Nothing
 * tells a driver that /dev/tpm0 was closed, so the session of H_TPM_COMM lasts as long as the
 * driver is bound: unbinding it, or removing the module, sends CLOSE_SESSION.
 *
 * Source: QEMU, docs/specs/ppc-spapr-uv-hcalls.rst.
 */
#include <linux/module.h>
#include <linux/platform_device.h>

#include <asm/hvcall.h>
#include <asm/svm.h>
#include <asm/ultravisor.h>

#include "tpm.h"

#define H_TPM_COMM		0xef10
#define TPM_COMM_EXECUTE	1
#define TPM_COMM_CLOSE_SESSION	2

/* Bytes of the largest command, and of the smallest buffer for a response. */
#define TPM_COMM_SIZE		4096

static_assert(TPM_BUFSIZE <= TPM_COMM_SIZE);
static_assert(PAGE_SIZE >= TPM_COMM_SIZE);

/* Holds a command, then its response: one page, which a secure VM shares. */
static void *buffer;

static int to_errno(long code)
{
	switch (code) {
	case H_FUNCTION:
		return -ENODEV;
	case H_RESOURCE:
		return -EIO;
	default:
		return -EINVAL;
	}
}

/* The core has one command under way at a time. */
static int hcall_tpm_send(struct tpm_chip *chip, u8 *data, size_t capacity, size_t size)
{
	unsigned long out[PLPAR_HCALL_BUFSIZE];
	long code;

	memcpy(buffer, data, size);
	code = plpar_hcall(H_TPM_COMM, out, TPM_COMM_EXECUTE, __pa(buffer), size,
			   __pa(buffer), TPM_COMM_SIZE);
	if (code != H_SUCCESS) {
		dev_err(&chip->dev, "H_TPM_COMM: %ld\n", code);
		return to_errno(code);
	}
	if (out[0] > min_t(size_t, capacity, TPM_COMM_SIZE))
		return -EOVERFLOW;
	memcpy(data, buffer, out[0]);
	memzero_explicit(buffer, out[0]);
	return out[0];
}

static const struct tpm_class_ops hcall_tpm_ops = {
	.flags = TPM_OPS_AUTO_STARTUP,
	.send = hcall_tpm_send,
};

static void close_session(void *data)
{
	struct device *dev = data;
	long code = plpar_hcall_norets(H_TPM_COMM, TPM_COMM_CLOSE_SESSION);

	if (code != H_SUCCESS)
		dev_err(dev, "H_TPM_COMM: closing the session: %ld\n", code);
}

static int hcall_tpm_probe(struct platform_device *pdev)
{
	struct tpm_chip *chip;
	int rc;

	/* Devres ends the chip before the session. */
	rc = devm_add_action(&pdev->dev, close_session, &pdev->dev);
	if (rc)
		return rc;
	chip = tpmm_chip_alloc(&pdev->dev, &hcall_tpm_ops);
	if (IS_ERR(chip))
		return PTR_ERR(chip);
	chip->flags |= TPM_CHIP_FLAG_SYNC;
	rc = tpm2_probe(chip);
	if (rc)
		return rc;
	if (!(chip->flags & TPM_CHIP_FLAG_TPM2))
		return -ENODEV;
	return tpm_chip_register(chip);
}

static void hcall_tpm_remove(struct platform_device *pdev)
{
	tpm_chip_unregister(platform_get_drvdata(pdev));
}

static struct platform_driver hcall_tpm_driver = {
	.probe = hcall_tpm_probe,
	.remove = hcall_tpm_remove,
	.driver = {
		.name = "hcall-tpm",
	},
};

static struct platform_device *hcall_tpm_device;

/*
 * The hypervisor reads and writes the buffer. A secure VM's pages are hidden from it, so this one
 * is shared, which leaves zeros in it. It is whole pages, so nothing else is shared with it.
 */
static int make_buffer(void)
{
	long code;

	buffer = (void *)get_zeroed_page(GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	if (!is_secure_guest())
		return 0;
	code = uv_share_page(PHYS_PFN(__pa(buffer)), 1);
	if (!code)
		return 0;
	pr_err("hcall-tpm: UV_SHARE_PAGE: %ld\n", code);
	free_page((unsigned long)buffer);
	return -EIO;
}

static void free_buffer(void)
{
	if (is_secure_guest() && uv_unshare_page(PHYS_PFN(__pa(buffer)), 1)) {
		/* It must not become anybody's memory. */
		pr_err("hcall-tpm: a page stays shared, and is not used again\n");
		return;
	}
	free_page((unsigned long)buffer);
}

static int __init hcall_tpm_init(void)
{
	int rc = make_buffer();

	if (rc)
		return rc;
	rc = platform_driver_register(&hcall_tpm_driver);
	if (rc)
		goto out_buffer;
	hcall_tpm_device = platform_device_register_simple("hcall-tpm", PLATFORM_DEVID_NONE,
							   NULL, 0);
	if (IS_ERR(hcall_tpm_device)) {
		rc = PTR_ERR(hcall_tpm_device);
		goto out_driver;
	}
	return 0;

out_driver:
	platform_driver_unregister(&hcall_tpm_driver);
out_buffer:
	free_buffer();
	return rc;
}
module_init(hcall_tpm_init);

static void __exit hcall_tpm_exit(void)
{
	platform_device_unregister(hcall_tpm_device);
	platform_driver_unregister(&hcall_tpm_driver);
	free_buffer();
}
module_exit(hcall_tpm_exit);

MODULE_DESCRIPTION("TPM behind H_TPM_COMM");
MODULE_LICENSE("GPL");
