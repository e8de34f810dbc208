#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Commands to a virtual TPM, from its smallest to one it does not know.

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

ktap_print_header
if [ ! -c /dev/tpm0 ]; then
	ktap_skip_all "no /dev/tpm0"
	exit "$KSFT_SKIP"
fi
ktap_set_plan 7
file=$(mktemp)
trap 'rm "$file"' EXIT

# send ESCAPES: a command's bytes for printf; gives the response in hexadecimal. One open file for
# both, and one write: the TPM's file takes a command whole.
send() {
	exec 3<> /dev/tpm0 || return 1
	# By a file: a shell may write what it prints line by line.
	printf "$1" > "$file"
	dd if="$file" bs=4096 >&3 2> /dev/null && dd bs=4096 count=1 <&3 2> /dev/null | od -An -v -tx1 | tr -d ' \n'
	exec 3>&-
}

# code RESPONSE: tag, size, then the return code.
code() {
	printf %s "$1" | cut -c 13-20
}

RANDOM_16='\200\001\000\000\000\014\000\000\001\173\000\020'
UNKNOWN='\200\001\000\000\000\012\000\000\177\377'
PCR='\000\000\000\007'
EXTEND="\\200\\002\\000\\000\\000\\101\\000\\000\\001\\202$PCR\\000\\000\\000\\011\\100\\000\\000\\011\\000\\000\\000\\000\\000\\000\\000\\000\\001\\000\\013"

one=$(send "$RANDOM_16")
two=$(send "$RANDOM_16")
ktap_test_result "GetRandom succeeds" [ "$(code "$one")" = 00000000 ]
ktap_test_result "it gives 16 bytes" [ "${#one}" = 56 ]
ktap_test_result "others each time" [ "$one" != "$two" ]
ktap_test_result "an unknown command is told so" [ "$(code "$(send "$UNKNOWN")")" = 00000143 ]
ktap_test_result "half a header gets no response" [ -z "$(send '\200\001\000\000')" ]

before=$(cat /sys/class/tpm/tpm0/pcr-sha256/7)
response=$(send "$EXTEND$(printf '\\061%.0s' $(seq 32))")
ktap_test_result "PCR_Extend succeeds" [ "$(code "$response")" = 00000000 ]
ktap_test_result "and changes PCR 7" [ "$(cat /sys/class/tpm/tpm0/pcr-sha256/7)" != "$before" ]
ktap_finished
