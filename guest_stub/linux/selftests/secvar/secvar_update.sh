#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Writes to secure variables: what is no signed update is refused and changes nothing, and what
# is one is taken. SECVAR_UPDATES is a folder with signed updates PK.update, KEK.update, db.update
# for a machine whose latch is open or whose PK they are signed by; without it those are skipped.
# WARNING: with it, the machine's keys are changed.

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

VARS=/sys/firmware/secvar/vars
UPDATES=${SECVAR_UPDATES:-/secvar}

ktap_print_header
if [ ! -d "$VARS/PK" ]; then
	ktap_skip_all "no $VARS/PK"
	exit "$KSFT_SKIP"
fi
ktap_set_plan 14
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

content() {
	cat "$VARS/$1/data" 2> /dev/null | sha256sum
}

# refused VARIABLE FILE: a write fails, and the variable is what it was.
refused() {
	local before=$(content "$1")
	if dd if="$2" of="$VARS/$1/update" bs=64k 2> /dev/null; then
		return 1
	fi
	[ "$(content "$1")" = "$before" ]
}

taken() {
	dd if="$2" of="$VARS/$1/update" bs=64k 2> "$folder/error" || return 1
	[ "$(cat "$VARS/$1/size")" -gt 0 ]
}

printf x > "$folder/one"
head -c 8 /dev/zero > "$folder/flags"
head -c 500 /dev/zero > "$folder/zeros"
head -c 500 /dev/urandom > "$folder/random"
head -c 4096 /dev/urandom > "$folder/page"
yes text 2> /dev/null | head -c 300 > "$folder/text"
for name in one flags zeros random page text; do
	ktap_test_result "PK refuses $name" refused PK "$folder/$name"
done

if [ ! -r "$UPDATES/PK.update" ] || [ ! -d "$VARS/db" ]; then
	for name in PK KEK db; do
		ktap_test_skip "$name takes a signed update"
		ktap_test_skip "$name refuses it altered"
	done
	for name in KEK db; do
		ktap_test_skip "$name refuses a replay"
	done
	ktap_finished
fi

altered() {
	head -c -1 "$1" > "$folder/altered"
	printf '\377' >> "$folder/altered"
}

for name in PK KEK db; do
	# PK's first is taken without a look at its signature, but for its form.
	ktap_test_result "$name takes a signed update" taken $name "$UPDATES/$name.update"
	altered "$UPDATES/$name.update"
	ktap_test_result "$name refuses it altered" refused $name "$folder/altered"
done
for name in KEK db; do
	ktap_test_result "$name refuses a replay" refused $name "$UPDATES/$name.update"
done
ktap_finished
