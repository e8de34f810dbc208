# SPDX-License-Identifier: Apache-2.0
"""``python -m hcallproto.codegen [--check] [--root DIR]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import hcallproto
from hcallproto.abi.registry import problems
from hcallproto.codegen.errors import CodegenError
from hcallproto.codegen.outputs import OUTPUTS, Output

_SOURCE_TREE = Path(hcallproto.__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the generated files; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hcallproto.codegen",
        description="Write the files that are derived from the table of calls.",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit with 1 if a file is stale"
    )
    parser.add_argument(
        "--root", type=Path, default=_SOURCE_TREE, help="top of the source tree (%(default)s)"
    )
    options = parser.parse_args(argv)
    if not (options.root / "pyproject.toml").is_file():
        parser.error(f"{options.root} is no source tree of hcalld; name one with --root")
    inconsistent = problems()
    if inconsistent:
        print("The table of calls is inconsistent:", *inconsistent, sep="\n  ", file=sys.stderr)
        return 1
    try:
        stale = [
            output.path for output in OUTPUTS if _bring_up_to_date(options.root, output, options)
        ]
    except CodegenError as error:
        print(f"hcallproto.codegen: {error}", file=sys.stderr)
        return 1
    for path in stale:
        print(f"{path}: stale, run `make generate`" if options.check else f"{path}: written")
    return 1 if options.check and stale else 0


def _bring_up_to_date(root: Path, output: Output, options: argparse.Namespace) -> bool:
    """Returns True if the file was not up to date; writes it unless checking."""
    path = root / output.path
    current = path.read_text("utf-8") if path.exists() else None
    new = output.generate(current)
    if new == current:
        return False
    if not options.check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new, "utf-8")
    return True


if __name__ == "__main__":
    sys.exit(main())
