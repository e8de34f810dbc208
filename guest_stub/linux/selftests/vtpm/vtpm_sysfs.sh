#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# PAPR's virtual TPM (drivers/char/tpm/tpm_ibmvtpm.c) in sysfs.

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

TPM=/sys/class/tpm/tpm0

ktap_print_header
if [ ! -d "$TPM" ]; then
	ktap_skip_all "no $TPM"
	exit "$KSFT_SKIP"
fi
ktap_set_plan 28

is_digest() {
	printf %s "$1" | grep -qE '^[0-9A-F]{64}$'
}

driver() {
	basename "$(readlink -f "$TPM/device/driver")"
}

ktap_test_result "the driver is tpm_ibmvtpm" [ "$(driver)" = tpm_ibmvtpm ]
ktap_test_result "the TPM is a TPM 2.0" [ "$(cat "$TPM/tpm_version_major")" = 2 ]
ktap_test_result "there is /dev/tpm0" [ -c /dev/tpm0 ]
ktap_test_result "there is /dev/tpmrm0" [ -c /dev/tpmrm0 ]
pcr=0
while [ $pcr -lt 24 ]; do
	ktap_test_result "PCR $pcr is a SHA-256" is_digest "$(cat "$TPM/pcr-sha256/$pcr")"
	pcr=$((pcr + 1))
done
ktap_finished
