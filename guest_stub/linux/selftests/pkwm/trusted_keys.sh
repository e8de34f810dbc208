#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Trusted keys that the Platform KeyStore wraps (security/keys/trusted-keys/trusted_pkwm.c).

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

ktap_print_header
if ! command -v keyctl > /dev/null; then
	ktap_skip_all "no keyctl"
	exit "$KSFT_SKIP"
fi
if ! keyctl add trusted probe "new 32" @u > /dev/null 2>&1; then
	ktap_skip_all "no source of trusted keys"
	exit "$KSFT_SKIP"
fi
if ! dmesg | grep -q "plpks: POWER LPAR Platform KeyStore initialized"; then
	ktap_skip_all "trusted keys are another source's: no keystore"
	exit "$KSFT_SKIP"
fi
ktap_set_plan 13

# add NAME PAYLOAD
add() {
	keyctl add trusted "$1" "$2" @u > /dev/null 2>&1
}

wrapped() {
	keyctl print "%trusted:$1"
}

refuses() {
	! add refused "$1"
}

flip() {
	local digit=0
	[ "$(printf %s "$1" | cut -c "$2")" != 0 ] || digit=1
	printf %s "$1" | sed "s/./$digit/$2"
}

ktap_test_result "the smallest key is made" add least "new 32"
ktap_test_result "the largest key is made" add most "new 128"
ktap_test_result "a smaller one is refused" refuses "new 31"
ktap_test_result "a larger one is refused" refuses "new 129"
ktap_test_result "an unknown wrap flag is refused" refuses "new 32 wrap_flags=0x100"

blob=$(wrapped least)
ktap_test_result "what is printed is hexadecimal" eval 'printf %s "$blob" | grep -qE "^[0-9a-f]+$"'
ktap_test_result "a wrapped key is loaded" add again "load $blob"
ktap_test_result "and is the same" [ "$(wrapped again)" = "$blob" ]
ktap_test_result "altered at its end it is refused" refuses "load $(flip "$blob" ${#blob})"
ktap_test_result "altered in its middle it is refused" refuses "load $(flip "$blob" $((${#blob} / 2)))"
ktap_test_result "cut off it is refused" refuses "load $(printf %s "$blob" | cut -c 1-200)"
ktap_test_result "nothing is refused" refuses "load"
if grep -q encrypted /proc/keys || keyctl add encrypted child "new trusted:least 32" @u > /dev/null 2>&1; then
	ktap_test_pass "an encrypted key stands on it"
else
	ktap_test_fail "an encrypted key stands on it"
fi
ktap_finished
