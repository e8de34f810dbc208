#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# check-image.sh IMAGE: what the linker script cannot see. An image that breaks one of
# these fails at a guest's first instruction or, worse, much later.
set -eu

image=$1
readelf=${CROSS:-powerpc64le-linux-gnu-}readelf
objdump=${CROSS:-powerpc64le-linux-gnu-}objdump

fail() {
	echo "check-image.sh: $image: $1" >&2
	exit 1
}

[ -z "$("$readelf" -rW "$image" | grep 'R_PPC64')" ] ||
	fail "relocations are left; nothing in the guest applies them"

[ "$("$readelf" -lW "$image" | grep -c ' LOAD ')" = 1 ] ||
	fail "expected exactly one LOAD segment, which holds .bss too"
"$readelf" -lW "$image" | grep -q ' LOAD .* 0x0000000000400000 0x0000000000000000 ' ||
	fail "expected virtual address 0x400000 and load address 0 (see guest.lds)"
! "$readelf" -lW "$image" | grep -Eq 'INTERP|DYNAMIC' ||
	fail "the image is not static"

[ "$("$readelf" -hW "$image" | sed -n 's/.*Entry point address: *//p')" = 0x400000 ] ||
	fail "the entry is not the first byte, where firmware jumps to"
others=$("$readelf" -SW "$image" | sed 's/^ *\[ *[0-9]*\] *//' |
	awk '$7 ~ /A/ && $5 != "000000" && $1 !~ /^\.(text|rodata|data|got|bss)$/ { print $1 }')
[ -z "$others" ] || fail "sections that guest.lds does not place: $others"
"$readelf" -hW "$image" | grep -Eq 'Flags: *0x2' ||
	fail "not ELFv2: function addresses would be descriptors"

# MSR[FP], [VEC] and [VSX] are off: such an instruction is an exception.
floats=$("$objdump" -d -M power9 "$image" |
	awk '$NF ~ /^(f|v|vs)[0-9]+,/ || $0 ~ /\t(lfd|lfs|stfd|stfs|lvx|stvx|lxv|stxv|xx|vx)/' |
	head -3)
[ -z "$floats" ] || fail "floating-point or vector instructions: $floats"
