#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A guest in secure mode (Documentation/arch/powerpc/ultravisor.rst).

DIR="$(dirname "$(readlink -f "$0")")"
. "$DIR"/../kselftest/ktap_helpers.sh

SVM=/sys/devices/system/cpu/svm

ktap_print_header
if [ ! -r "$SVM" ]; then
	ktap_skip_all "no $SVM: a kernel without PPC_SVM"
	exit "$KSFT_SKIP"
fi
if [ "$(cat "$SVM")" != 1 ]; then
	ktap_skip_all "this guest is not secure"
	exit "$KSFT_SKIP"
fi
get_file() {
	esmb-get-file selftest > /tmp/selftest 2> /dev/null && [ -s /tmp/selftest ]
}

get_nothing() {
	! esmb-get-file selftest > /dev/null 2>&1
}

cpus=$(grep -c ^processor /proc/cpuinfo)
ktap_set_plan $((cpus + 4))

cpu=0
while [ $cpu -lt "$cpus" ]; do
	ktap_test_result "CPU $cpu is in secure mode" [ "$(taskset -c $cpu cat "$SVM")" = 1 ]
	cpu=$((cpu + 1))
done

cpu=/sys/devices/system/cpu/cpu1/online
if [ -w "$cpu" ]; then
	echo 0 > "$cpu" && echo 1 > "$cpu"
	ktap_test_result "a CPU that was off is secure again" [ "$(taskset -c 1 cat "$SVM")" = 1 ]
else
	ktap_test_skip "a CPU that was off is secure again"
fi

# Buffers for devices are all that is shared.
ktap_test_result "bounce buffers are forced" grep -qw swiotlb=force /proc/cmdline
if command -v esmb-get-file > /dev/null; then
	ktap_test_result "the blob's file can be read" get_file
	ktap_test_result "and only once" get_nothing
	rm -f /tmp/selftest
else
	ktap_test_skip "the blob's file can be read"
	ktap_test_skip "and only once"
fi
ktap_finished
