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

# ktap_test_result splits its words once more: what has spaces goes by way of these.
new() {
	keyctl add trusted "$1" "new $2" @u > /dev/null 2>&1
}

new_with_flag() {
	keyctl add trusted "$1" "new 32 wrap_flags=$2" @u > /dev/null 2>&1
}

load() {
	keyctl add trusted "$1" "load $2" @u > /dev/null 2>&1
}

fails() {
	! "$@"
}

wrapped() {
	keyctl print "%trusted:$1"
}

is_hex() {
	case "$1" in
	"" | *[!0-9a-f]*) return 1 ;;
	esac
}

# flip TEXT POSITION: changes one digit.
flip() {
	local digit=0
	[ "$(printf %s "$1" | cut -c "$2")" != 0 ] || digit=1
	printf %s "$1" | sed "s/./$digit/$2"
}

encrypted_under() {
	keyctl add encrypted child "new trusted:$1 32" @u > /dev/null 2>&1 &&
		is_hex "$(keyctl print %encrypted:child | awk '{ print $NF }')"
}

ktap_test_result "the smallest key is made" new least 32
ktap_test_result "the largest key is made" new most 128
ktap_test_result "a smaller one is refused" fails new small 31
ktap_test_result "a larger one is refused" fails new large 129
ktap_test_result "an unknown wrap flag is refused" fails new_with_flag flagged 0x100

blob=$(wrapped least)
length=${#blob}
ktap_test_result "what is printed is hexadecimal" is_hex "$blob"
ktap_test_result "a wrapped key is loaded" load again "$blob"
ktap_test_result "and is the same" [ "x$(wrapped again)" = "x$blob" ]
ktap_test_result "altered at its end it is refused" fails load end "$(flip "$blob" $length)"
ktap_test_result "altered in its middle it is refused" \
	fails load middle "$(flip "$blob" $((length / 2)))"
ktap_test_result "cut off it is refused" fails load cut "$(printf %s "$blob" | cut -c 1-200)"
ktap_test_result "a larger key is printed longer" [ $(wrapped most | wc -c) -gt $length ]
ktap_test_result "an encrypted key stands on it" encrypted_under least
ktap_finished
