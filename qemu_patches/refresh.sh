#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Applies, checks and rewrites the series of this directory. See README.md.

set -eu

here=$(cd "$(dirname "$0")" && pwd)
version=v10.0
series=$here/$version
work=${QEMU_WORK:-}

usage() {
    cat <<END
usage: refresh.sh check TREE          does the series apply to TREE, and does
                                      every patch pass checkpatch.pl?
       refresh.sh open TREE DIRECTORY make DIRECTORY a git repository with TREE
                                      as its first commit (tag: base) and one
                                      commit for each patch of the series
       refresh.sh write DIRECTORY     write the commits after tag base of
                                      DIRECTORY back as the series

TREE is an unpacked source of QEMU ($version.x). It is not changed. What cannot
be done is said on standard error, and the exit status is not 0.
END
    exit 2
}

die() {
    echo "refresh.sh: $*" >&2
    exit 1
}

patches() {
    sed 's/#.*//' "$series/series" | while read -r name; do
        [ -z "$name" ] || echo "$series/$name"
    done
}

open_tree() {
    tree=$1 dir=$2
    [ -f "$tree/VERSION" ] || die "$tree is no source of QEMU: it has no file VERSION"
    case v$(cat "$tree/VERSION") in
    "$version".*) ;;
    *) die "$tree is QEMU $(cat "$tree/VERSION"), the series is for $version.x" ;;
    esac
    [ ! -e "$dir" ] || die "$dir exists; name a directory to be made"

    mkdir -p "$dir"
    (cd "$tree" && tar -cf - --exclude=./.git --exclude=./build .) | tar -xf - --no-same-owner -C "$dir"
    cd "$dir"
    git -c init.defaultBranch=series init -q .
    # Even files that QEMU's own .gitignore leaves out are part of a tarball.
    git -c advice.addEmbeddedRepo=false add -Af .
    git -c user.name=base -c user.email=base@localhost \
        commit -q -m "QEMU $(cat VERSION)"
    git tag base
    # The author is the patch's; the committer is whoever does this.
    patches | xargs git -c user.name="${GIT_COMMITTER_NAME:-series}" \
        -c user.email="${GIT_COMMITTER_EMAIL:-series@localhost}" am -q ||
        die "the series does not apply, see above; it is half applied in $dir"
    cd - >/dev/null
}

check_patches() {
    dir=$1
    cd "$dir"
    failed=0
    for commit in $(git rev-list --reverse base..HEAD); do
        if ! git format-patch -q -1 --stdout "$commit" |
            perl scripts/checkpatch.pl -q --strict - >.checkpatch 2>&1 ||
            [ -s .checkpatch ]; then
            git log -1 --format='%s:' "$commit"
            cat .checkpatch
            failed=1
        fi
    done
    rm -f .checkpatch
    cd - >/dev/null
    [ $failed = 0 ] || die "checkpatch.pl finds fault, see above"
}

write_series() {
    dir=$1
    git -C "$dir" rev-parse -q --verify base >/dev/null ||
        die "$dir has no tag base; make it with: refresh.sh open TREE $dir"
    [ -z "$(git -C "$dir" status --porcelain --untracked-files=no)" ] ||
        die "$dir has changes that are not committed"
    check_patches "$dir"
    mkdir -p "$series"
    rm -f "$series"/*.patch
    git -C "$dir" format-patch -q --zero-commit --no-signature --numbered \
        --no-renames -o "$series" base..HEAD
    {
        echo "# The patches of this directory, in the order in which they apply."
        for patch in "$series"/*.patch; do
            basename "$patch"
        done
    } >"$series/series"
}

case ${1:-} in
check)
    [ $# = 2 ] || usage
    tree=$(cd "$2" && pwd)
    scratch=$(mktemp -d "${work:-${TMPDIR:-/tmp}}/series.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    open_tree "$tree" "$scratch/qemu"
    check_patches "$scratch/qemu"
    echo "$(patches | wc -l) patches apply and pass checkpatch.pl"
    ;;
open)
    [ $# = 3 ] || usage
    tree=$(cd "$2" && pwd)
    open_tree "$tree" "$3"
    echo "$3 is ready; commit there, then: refresh.sh write $3"
    ;;
write)
    [ $# = 2 ] || usage
    write_series "$2"
    echo "wrote $(patches | wc -l) patches to $series"
    ;;
*)
    usage
    ;;
esac
