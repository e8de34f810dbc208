#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The Platform KeyStore's configuration, as /sys/firmware/plpks/config shows it
# (Documentation/ABI/testing/sysfs-firmware-plpks).

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

CONFIG=/sys/firmware/plpks/config
MASKS="supported_policies signed_update_algorithms wrapping_features"

ktap_print_header
if [ ! -d "$CONFIG" ]; then
	ktap_skip_all "no $CONFIG: no keystore, or a kernel before 6.19 or without PSERIES_PLPKS"
	exit "$KSFT_SKIP"
fi

there=0
for name in $(ls "$CONFIG"); do
	there=$((there + 1))
done
ktap_set_plan $((2 * there + 4))

is_number() {
	case "$1" in
	"" | *[!0-9]*) return 1 ;;
	esac
}

is_hex() {
	case "$1" in
	"" | *[!0-9a-f]*) return 1 ;;
	esac
}

for name in $(ls "$CONFIG"); do
	value=$(cat "$CONFIG/$name")
	case " $MASKS " in
	*" $name "*) ktap_test_result "$name is a mask" is_hex "$value" ;;
	*) ktap_test_result "$name is a number" is_number "$value" ;;
	esac
	ktap_test_result "$name is read-only" [ "$(stat -c %a "$CONFIG/$name")" = 444 ]
done

total=$(cat "$CONFIG/total_size")
used=$(cat "$CONFIG/used_space")
ktap_test_result "the version is 1 or more" [ "$(cat "$CONFIG/version")" -ge 1 ]
ktap_test_result "the store has a size" [ "$total" -gt 0 ]
ktap_test_result "no more is used than there is" [ "$used" -le "$total" ]
ktap_test_result "reading uses nothing" [ "$(cat "$CONFIG/used_space")" = "$used" ]
ktap_finished
