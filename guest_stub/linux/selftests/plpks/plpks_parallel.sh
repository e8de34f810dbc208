#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# H_PKS_GET_CONFIG from every processor at once: each read of used_space is a hypercall.

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

FILE=/sys/firmware/plpks/config/used_space
READS=100

ktap_print_header
if [ ! -r "$FILE" ]; then
	ktap_skip_all "no $FILE"
	exit "$KSFT_SKIP"
fi
cpus=$(grep -c ^processor /proc/cpuinfo)
ktap_set_plan "$cpus"
expected=$(cat "$FILE")
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

reader() {
	local n=0
	while [ $n -lt $READS ]; do
		[ "$(taskset -c "$1" cat "$FILE")" = "$expected" ] || return 1
		n=$((n + 1))
	done
	: > "$folder/$1"
}

cpu=0
while [ $cpu -lt "$cpus" ]; do
	reader $cpu &
	cpu=$((cpu + 1))
done
wait
cpu=0
while [ $cpu -lt "$cpus" ]; do
	ktap_test_result "$READS reads on CPU $cpu" [ -e "$folder/$cpu" ]
	cpu=$((cpu + 1))
done
ktap_finished
