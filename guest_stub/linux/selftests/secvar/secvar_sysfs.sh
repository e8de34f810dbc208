#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Secure variables in sysfs (Documentation/ABI/testing/sysfs-secvar).

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

SECVAR=/sys/firmware/secvar

ktap_print_header
if [ ! -d "$SECVAR/vars" ]; then
	ktap_skip_all "no $SECVAR: no keystore, or a kernel without PPC_SECVAR_SYSFS"
	exit "$KSFT_SKIP"
fi
names=$(ls "$SECVAR/vars")
count=0
for name in $names; do
	count=$((count + 1))
done
ktap_set_plan $((3 + 3 * count))

is_known() {
	case "$1" in
	ibm,plpks-sb-v[0-9]* | ibm,edk2-compat-v1) return 0 ;;
	esac
	return 1
}

# The size is that of the data; of a variable that is not there neither can be read.
agrees() {
	local size
	if size=$(cat "$1/size" 2> /dev/null); then
		[ "$(cat "$1/data" | wc -c)" = "$size" ]
	else
		! cat "$1/data" > /dev/null 2>&1
	fi
}

ktap_test_result "the format is known" is_known "$(cat "$SECVAR/format")"
ktap_test_result "PK is among the variables" [ -d "$SECVAR/vars/PK" ]
ktap_test_result "the objects' limit is shown" [ "$(cat "$SECVAR/config/max_object_size")" -gt 0 ]
for name in $names; do
	var=$SECVAR/vars/$name
	ktap_test_result "$name has size, data, update" [ -e "$var/size" -a -e "$var/data" -a -e "$var/update" ]
	ktap_test_result "$name is updated by root only" [ "$(stat -c %a "$var/update")" = 200 ]
	ktap_test_result "the size of $name agrees with its data" agrees "$var"
done
ktap_finished
