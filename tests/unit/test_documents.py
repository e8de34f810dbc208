# SPDX-License-Identifier: Apache-2.0
"""What the documents show is true: commands, profiles, trace lines, options, links.

Every fenced block has a language that says what is done with it here. Commands are run where
they only read or write a state directory, and held against the command line's, the Makefile's
and the QEMU series' own words where they start something.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Final

import click
import msgspec
import pytest
from click.testing import CliRunner
from tests.esm import INITRD, kernel_elf

from hcalld.cli import cli
from hcalld.config import Emulation, PefChoice, TpmChoice, parse_profile
from hcalld.core.records import Run
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.domain.sev.settings import SevSettings
from hcalld.faults.engine import load as load_faults
from hcalld.stores.directory import StateDirectory
from hcallproto.abi.registry import BY_NAME
from hcallproto.abi.spec import ArgKind
from hcallproto.render import describe_call

ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
SERIES: Final = ROOT / "qemu_patches" / "v10.0"

PROJECT_DOCUMENTS: Final = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
"""About the project and its commands."""

DOCUMENTS: Final = (
    *PROJECT_DOCUMENTS,
    ROOT / "CHANGELOG.md",
    ROOT / "guest_stub" / "README.md",
    ROOT / "ioctl_shim" / "README.md",
    *sorted((ROOT / "qemu_patches").glob("*.md")),
)


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


# -- blocks -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    document: pathlib.Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.document)}:{self.line}"


def blocks_of(document: pathlib.Path) -> Iterator[Block]:
    """The fenced blocks of a document, each of which must be closed."""
    begun: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(document.read_text("utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif begun is None:
            begun, lines = (number, line[3:].strip()), []
        else:
            yield Block(document, *begun, "\n".join(lines) + "\n")
            begun = None
    assert begun is None, f"{name_of(document)}: the block at line {begun} is not closed"


def blocks(*languages: str, documents: tuple[pathlib.Path, ...] = DOCUMENTS) -> list[Block]:
    return [
        block
        for document in documents
        for block in blocks_of(document)
        if block.language in languages
    ]


CHECKED: Final = ("sh", "console", "toml")
SHOWN: Final = ("", "c")
"""Diagrams and output, and C that the guest stub's compiler sees elsewhere."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_blocks_when_listed_then_each_says_what_it_is(document: pathlib.Path):
    for block in blocks_of(document):
        assert block.language in CHECKED + SHOWN, f"{block}: nothing checks {block.language!r}"


def test_blocks_when_counted_then_there_are_some_to_check():
    assert blocks("sh", documents=PROJECT_DOCUMENTS)
    assert blocks("toml")


# -- commands -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a block, or one named in a text."""

    where: str
    words: tuple[str, ...]
    folder: pathlib.Path = ROOT
    """Whose Makefile its ``make`` is."""

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_OPERATORS = frozenset({"&", "&&", "|", ";", "||"})


def split(text: str, where: str, folder: pathlib.Path) -> Iterator[Command]:
    """The simple commands of a shell text, those in ``$(...)`` too."""
    for line in text.replace("\\\n", " ").splitlines():
        for inner in _SUBSTITUTION.findall(line):
            yield from split(inner, where, folder)
        lexer = shlex.shlex(
            _SUBSTITUTION.sub("SUBSTITUTED", line), posix=True, punctuation_chars=True
        )
        lexer.wordchars += "$%,:@[]{}"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _OPERATORS:
                words.append(word)
                continue
            while words and _ASSIGNMENT.match(words[0]):
                del words[0]
            if words:
                yield Command(where, tuple(words), folder)
            words = []


def shown_commands(documents: tuple[pathlib.Path, ...] = DOCUMENTS) -> list[Command]:
    """Every command in a block."""
    found: list[Command] = []
    for block in blocks("sh", "console", documents=documents):
        text = block.text
        if block.language == "console":
            text = "\n".join(
                line[2:] for line in text.splitlines() if line.startswith(("$ ", "# "))
            )
        folder = block.document.parent if block.document not in PROJECT_DOCUMENTS else ROOT
        found += split(text, str(block), folder)
    return found


_SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")


def spans_of(document: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Inline code: (where, text). Blocks are left out."""
    text = re.sub(r"(?ms)^```.*?^```$", lambda m: "\n" * m[0].count("\n"), document.read_text())
    for match in _SPAN.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield f"{name_of(document)}:{line}", " ".join(match[1].split())


def named_commands(program: str) -> list[Command]:
    """Every ``program ...`` that a text names."""
    return [
        command
        for document in PROJECT_DOCUMENTS
        for where, span in spans_of(document)
        if re.search(rf"(?:^| ){program} ", span)
        for command in split(span, where, ROOT)
        if command.words[0] == program
    ]


TYPED: Final = (ROOT / "docs" / "sev.md",)
"""Pages that are run whole, whatever they use: tests/integration/test_sev_page.py."""


def program_of(command: Command) -> str:
    words = [word for word in command.words if word != "sudo"]
    return pathlib.PurePath(words[0]).name


def test_commands_when_shown_then_each_is_of_a_kind_that_is_checked():
    # Documents of parts, such as QEMU's series, use the tools of those parts too.
    known = {"hcalld", "make", "qemu-system-ppc64", "git", "cd", "apt-get", "openssl", "truncate"}
    known |= {"tshark", "mkdir", "ln"}
    pages = tuple(document for document in PROJECT_DOCUMENTS if document not in TYPED)
    for command in shown_commands(pages):
        assert program_of(command) in known, command


def test_scripts_when_a_document_shows_one_then_it_is_there_and_has_the_subcommand():
    for command in shown_commands():
        folder = command.words[0].partition("/")[0]
        if folder not in ("tests", "qemu_patches", "guest_stub"):
            continue
        script = ROOT / command.words[0]
        assert os.access(script, os.X_OK), command
        if command.words[1:] and command.words[1].isalpha():
            assert re.search(rf"\b{command.words[1]}\b", script.read_text()), command


HCALLD_COMMANDS: Final = [
    command
    for command in (*shown_commands(), *named_commands("hcalld"))
    if program_of(command) == "hcalld"
]


@pytest.mark.parametrize("command", HCALLD_COMMANDS, ids=str)
def test_hcalld_when_a_document_shows_it_then_its_options_exist(command: Command):
    words = list(command.words[1:])
    if words in (["--print-capabilities"], ["--version"]):
        return
    found: click.Command = cli
    context = click.Context(cli, info_name="hcalld")
    while isinstance(found, click.Group):
        assert words, f"{command}: a subcommand is missing"
        name = words.pop(0)
        subcommand = found.get_command(context, name)
        assert subcommand is not None, f"{command}: no subcommand {name}"
        found = subcommand
        if not words and isinstance(found, click.Group):
            return  # a text speaks of the group
        context = click.Context(found, parent=context, info_name=name)
    # Texts leave out what is required; options that there are not fail all the same.
    parser = found.make_parser(context)
    parser.ignore_unknown_options = False
    parser.parse_args(words)


RUNNABLE: Final = ("state", "ctl", "secvar", "esm", "list", "qemu-args")
ASKS_DAEMON: Final = ("guests", "page-out")
"""Subcommands of ctl."""
NEEDS_GUEST: Final = [
    command
    for command in shown_commands()
    if command.words[:2] == ("hcalld", "ctl") and command.words[2] in ASKS_DAEMON
]
"""Run in ``tests/unit/hcalld/control``, where there is a daemon with a secure guest lpar7."""
FAULT_COMMANDS: Final = [
    command for command in shown_commands() if command.words[:2] == ("hcalld", "fault")
]
"""Run in ``tests/unit/hcalld/control`` too, in the order of the document."""
RUN_HERE: Final = [
    command
    for command in shown_commands()
    if not command.where.startswith("docs/capture.md:")  # tests/integration/test_capture_page.py
    and (
        (
            program_of(command) == "hcalld"
            and command.words[1] in RUNNABLE
            and command not in NEEDS_GUEST
        )
        or program_of(command) == "openssl"
    )
]


def test_state_when_the_documents_commands_are_run_then_each_succeeds(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    assert {command.words[2] for command in NEEDS_GUEST} == set(ASKS_DAEMON)
    assert {"state", "ctl", "secvar", "esm"} <= {command.words[1] for command in RUN_HERE}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HCALLD_STATE_DIR", os.fspath(tmp_path / "state"))
    pathlib.Path("pin.bin").write_bytes(bytes(range(32)))
    pathlib.Path("build").mkdir()
    for kernel in ("vmlinux", "build/stub-be.elf"):
        pathlib.Path(kernel).write_bytes(kernel_elf())
    for initrd in ("initrd.img", "initrd"):
        pathlib.Path(initrd).write_bytes(INITRD)
    pathlib.Path("disk.pass").write_bytes(b"a passphrase")
    for name in ("export.pass", "hcalld.pass"):
        pathlib.Path(name).write_text("a passphrase of some length\n")
        pathlib.Path(name).chmod(0o600)
    pathlib.Path("profiles").mkdir()
    store = StateDirectory(tmp_path / "state").open("lpar7")
    store.begin_run(Run(bytes(16), 0))
    store.close()
    for command in RUN_HERE:
        if program_of(command) == "openssl":
            subprocess.run(command.words, check=True, capture_output=True)
            continue
        done = CliRunner().invoke(cli, command.words[1:])
        assert done.exit_code == 0, f"{command}: {done.output} {done.exception}"


_TARGET = re.compile(r"^([a-z][a-z0-9-]*):", re.MULTILINE)


@pytest.mark.parametrize(
    "command",
    [
        command
        for command in (*shown_commands(), *named_commands("make"))
        if program_of(command) == "make"
    ],
    ids=str,
)
def test_make_when_a_document_shows_it_then_its_targets_exist(command: Command):
    makefile = command.folder / "Makefile"
    text = makefile.read_text()
    targets = set(_TARGET.findall(text))
    for pattern in re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE):
        targets |= set(pattern.split())
    for word in command.words[1:]:
        if not re.match(r"[A-Z_]+=", word):
            assert word in targets, f"{command}: {name_of(makefile)} has no target {word}"


# -- options and keys ---------------------------------------------------------------------------


def all_options() -> set[str]:
    """Every option of every subcommand."""
    found: set[str] = {"--help", "-h"}
    waiting: list[click.Command] = [cli]
    while waiting:
        command = waiting.pop()
        context = click.Context(command)
        for param in command.params:
            found |= {*param.opts, *param.secondary_opts}
        if isinstance(command, click.Group):
            names = command.list_commands(context)
            waiting += filter(None, (command.get_command(context, name) for name in names))
    return found


@pytest.mark.parametrize("document", PROJECT_DOCUMENTS, ids=name_of)
def test_options_when_a_text_names_one_then_it_exists(document: pathlib.Path):
    known = all_options()
    for where, span in spans_of(document):
        for option in re.findall(r"(?:^|[\s\[])(--[a-z][a-z0-9-]*)", span):
            assert option in known, f"{where}: no subcommand has {option}"


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_when_a_document_shows_it_then_it_is_a_profile_or_rules_of_faults(block: Block):
    if "[[fault]]" in block.text:
        assert len(load_faults(block.text, str(block)))
        return
    parse_profile(block.text, "lpar7", str(block))


def test_toml_when_the_user_guide_gives_the_defaults_then_they_are():
    """The first block: "These are the defaults"."""
    first = next(block for block in blocks("toml") if block.document.name == "using.md")
    profile = parse_profile(first.text, "lpar7", str(first))
    assert profile.attributes == PartitionAttributes()
    assert profile.emulation == Emulation()
    assert profile.tpm == TpmChoice()
    assert profile.pef == PefChoice()


def test_toml_when_the_page_of_sev_gives_the_defaults_then_they_are():
    (block,) = (
        block
        for block in blocks("toml", documents=(ROOT / "docs" / "sev.md",))
        if "[sev]" in block.text
    )
    assert parse_profile(block.text, "sev", str(block)).sev == SevSettings()
    # Each of them, with its own name.
    named = set(re.findall(r"^(\w+) = ", block.text, re.MULTILINE))
    assert named == set(SevSettings.__struct_fields__)


def test_keys_when_a_profile_has_them_then_the_user_guide_names_each():
    text = (ROOT / "docs" / "using.md").read_text()
    kinds: tuple[type[msgspec.Struct], ...] = (
        PartitionAttributes,
        PksAttributes,
        Emulation,
        TpmChoice,
        PefChoice,
    )
    for kind in kinds:
        for field in msgspec.structs.fields(kind):
            name = field.encode_name
            assert re.search(rf"\b{name}\b", text), f"docs/using.md does not name the key {name}"


# -- the device ---------------------------------------------------------------------------------


def device_properties() -> dict[str, str]:
    """Property to default, as the series' own document lists them."""
    added = "".join(patch.read_text() for patch in sorted(SERIES.glob("*-docs-*.patch")))
    return {
        match[1]: match[2] or ""
        for match in re.finditer(r"^\+``([a-z-]+)``(?: \(([^)]*)\))?$", added, re.MULTILINE)
    }


def test_device_when_the_series_is_read_then_it_has_properties():
    assert {"chardev", "optional", "connect-timeout-ms"} <= set(device_properties())


def test_device_when_a_document_names_its_properties_then_they_exist():
    properties = device_properties()
    count = 0
    for document in DOCUMENTS:
        for found in re.finditer(r"spapr-hcall-proxy((?:\[?,[^\s`]+)+)", document.read_text()):
            for pair in found[1].replace("[", "").replace("]", "").strip(",").split(","):
                name, _, value = pair.partition("=")
                assert name in properties, f"{name_of(document)}: the device has no {name}"
                if value.isdigit():
                    assert value == properties[name], f"{name_of(document)}: {pair}"
                count += 1
    assert count


def test_device_when_qemu_args_makes_it_then_the_series_knows_every_property():
    words = CliRunner().invoke(cli, ["qemu-args", "--optional"]).output.split()
    device = words[words.index("-device") + 1]
    driver, *pairs = device.split(",")
    assert driver == "spapr-hcall-proxy"
    assert {pair.partition("=")[0] for pair in pairs} <= set(device_properties())


# -- trace lines --------------------------------------------------------------------------------

_TRACE = re.compile(r"^\S+ cpu\d+ #\d+ (H_[A-Z_0-9]+)\((.*)\) = [HU]_\w+", re.MULTILINE)


def test_trace_when_a_document_shows_a_line_then_its_arguments_are_shown_so():
    count = 0
    for document in PROJECT_DOCUMENTS:
        for found in _TRACE.finditer(document.read_text()):
            hcall = BY_NAME[found[1]]
            registers = {arg.register: 0 if arg.kind is ArgKind.ZERO else 1 for arg in hcall.args}
            expected = list(describe_call(hcall, {3: hcall.number, **registers})["args"])
            shown = re.findall(r"(?:^|, )([a-z_]+)=", found[2])
            assert shown == expected, f"{name_of(document)}: {found[0]}"
            count += 1
    assert count


# -- links and paths ----------------------------------------------------------------------------


def anchors_of(document: pathlib.Path) -> set[str]:
    """Where links into a Markdown document may lead."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_when_they_lead_into_the_tree_then_something_is_there(document: pathlib.Path):
    text = re.sub(r"(?ms)^```.*?^```$", "", document.read_text())
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            missing.append(target)
    assert missing == []


_PATH = re.compile(r"[A-Za-z_][\w.-]*(?:/[\w.-]+)*/?")
_SUFFIXES = (".py", ".md", ".rst", ".c", ".h", ".sh", ".json", ".toml", ".patch")
PATH_ROOTS: Final = (
    ROOT,
    ROOT / "docs",
    ROOT / "server" / "hcalld",
    ROOT / "protocol" / "hcallproto",
)
NOT_HERE: Final = frozenset(
    {
        "default.toml",
        "plpks.c",
        "plpks.h",
        "hvcall.h",
        "papr_hcalls.rst",
        "plpks_sed_ops.c",
        "plpks-secvar.c",
        "trusted_pkwm.c",
        "svm.c",
        "prom_init.c",
        "docs/specs/",
        "opt/ibm/pef",
        "profiles/secure.toml",
        "ktap_helpers.sh",
        "run_kselftest.sh",
    }
)
"""Names of files that users make, that Linux or an initrd has, or that are in the series."""


@pytest.mark.parametrize("document", PROJECT_DOCUMENTS, ids=name_of)
def test_paths_when_a_text_names_one_then_it_is_there(document: pathlib.Path):
    missing = []
    siblings = PATH_ROOTS
    for where, span in spans_of(document):
        is_path = _PATH.fullmatch(span) and ("/" in span or span.endswith(_SUFFIXES))
        if not is_path or span in NOT_HERE:
            continue
        here = [root / span for root in siblings]
        # `wire/decode.py`, `encode.py`: the second is beside the first.
        here += [path.parent / span for path in _last_paths(document, where)]
        if not any(path.exists() for path in here):
            missing.append(f"{where}: {span}")
    assert missing == []


def _last_paths(document: pathlib.Path, where: str) -> list[pathlib.Path]:
    """Files that the same line names."""
    return [
        root / span
        for place, span in spans_of(document)
        if place == where and "/" in span
        for root in PATH_ROOTS
    ]
