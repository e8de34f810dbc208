# SPDX-License-Identifier: Apache-2.0
"""Profiles: every key, every wrong one, and which guest gets which."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from hcalld.config import (
    UNNAMED_PARTITION,
    Emulation,
    PefChoice,
    Profile,
    Profiles,
    TpmChoice,
    parse_profile,
)
from hcalld.core.errors import ConfigError
from hcalld.domain.attributes import PartitionAttributes, PksAttributes
from hcalld.domain.pef.machine import PefSettings

NO_UUID = bytes(16)
UUID = "5f6e0f3c-6f3c-4c43-a36e-0d6b0a2c3a51"
UUID_BYTES = uuid.UUID(UUID).bytes
OTHER_UUID = "00112233-4455-6677-8899-aabbccddeeff"


def parse(text: str) -> Profile:
    return parse_profile(text, "lpar7", "lpar7.toml")


def refusal(text: str) -> str:
    """Why a profile is refused: one line that names the file."""
    with pytest.raises(ConfigError) as raised:
        parse(text)
    message = str(raised.value)
    assert message.startswith("lpar7.toml: ")
    assert "\n" not in message
    return message


# -- keys --------------------------------------------------------------------------------------


def test_parse_when_it_is_empty_then_every_default_holds():
    profile = parse("")
    assert profile.partition == "lpar7"
    assert profile.source == "lpar7.toml"
    assert profile.attributes == PartitionAttributes()
    assert profile.emulation == Emulation()


KEYS: dict[str, list[tuple[str, object]]] = {
    "keystore_kbytes": [("0", 0), ("4", 4), ("128", 128)],
    "keystore_signed_updates": [("0", 0), ("1", 1)],
    "keystore_signed_updates_without_verification": [("0", 0), ("1", 1)],
    "linux_dynamic_key_secure_boot": [("0", 0), ("1", 1)],
    "secure_boot": [("0", 0), ("1", 1), ("2", 2)],
    "pks.object_overhead": [("0", 0), ("1024", 1024)],
    "pks.max_password_size": [("32", 32), ("4080", 4080)],
    "pks.max_label_size": [("255", 255), ("512", 512)],
    "pks.max_object_size": [("1024", 1024), ("65536", 65536)],
    "pks.supported_policies": [('["WORLDREADABLE"]', ("WORLDREADABLE",)), ("[]", ())],
    "pks.busy_answers": [("0", 0), ("1000", 1000)],
    "pks.busy_hint_ms": [("0", 0), ("10", 10), ("100000", 100_000)],
    "hcalld.name": [('"guest"', "guest"), ('"' + "x" * 128 + '"', "x" * 128)],
    "hcalld.uuid": [(f'"{UUID}"', UUID)],
    "hcalld.unserved": [('"function"', "function"), ('"qemu"', "qemu")],
    "hcalld.deadline_ms": [("100", 100), ("600000", 600_000)],
}
"""Every key, with values that it may have, at their bounds where there are any."""

WRONG: dict[str, list[str]] = {
    "keystore_kbytes": ["-1", "3", "129", '"64"', "1.5", "true"],
    "keystore_signed_updates": ["-1", "2", "true", '"yes"'],
    "keystore_signed_updates_without_verification": ["2"],
    "linux_dynamic_key_secure_boot": ["2"],
    "secure_boot": ["-1", "3", '"enforce"'],
    "pks.object_overhead": ["-1", "1025"],
    "pks.max_password_size": ["31", "4081"],
    "pks.max_label_size": ["254", "513"],
    "pks.max_object_size": ["1023", "65537"],
    "pks.supported_policies": ['["NO_SUCH_POLICY"]', '"WORLDREADABLE"'],
    "pks.busy_answers": ["-1", "1001"],
    "pks.busy_hint_ms": ["-1", "2", "1000000"],
    "hcalld.name": ['""', '"' + "x" * 129 + '"', "7"],
    "hcalld.uuid": ['"rubbish"', '""', "7"],
    "hcalld.unserved": ['"ignore"', "0"],
    "hcalld.deadline_ms": ["99", "600001", '"soon"'],
}
"""Every key, with values just outside, or of another type."""


def all_keys() -> set[str]:
    """Every key there is, as the structures declare them."""
    keys = set()
    for kind, table in ((PartitionAttributes, ""), (PksAttributes, "pks."), (Emulation, "hcalld.")):
        keys |= {table + field.encode_name for field in msgspec.structs.fields(kind)}
    return keys - {"pks"}


@pytest.mark.parametrize("table", [KEYS, WRONG], ids=["right", "wrong"])
def test_keys_when_one_is_added_then_it_is_added_here(table: Mapping[str, object]):
    assert set(table) == all_keys()


@pytest.mark.parametrize(
    ("key", "text", "value"), [(key, *case) for key, cases in KEYS.items() for case in cases]
)
def test_parse_when_a_key_has_a_good_value_then_it_is_taken(key: str, text: str, value: object):
    profile = parse(f"{key} = {text}")
    table, _, name = key.rpartition(".")
    owner: object = profile.attributes
    if table:
        owner = profile.emulation if table == "hcalld" else profile.attributes.pks
    assert getattr(owner, name) == value


@pytest.mark.parametrize(
    ("key", "text"), [(key, text) for key, texts in WRONG.items() for text in texts]
)
def test_parse_when_a_key_has_a_wrong_value_then_the_message_names_it(key: str, text: str):
    assert key.rpartition(".")[2] in refusal(f"{key} = {text}")


@pytest.mark.parametrize(
    ("text", "named", "told"),
    [
        ("keystore_kbyte = 64", "keystore_kbyte", "keystore_kbytes"),
        ("[hcalld]\nguest = 'x'", "guest", "deadline_ms"),
        ("[pks]\nmax_password = 64", "max_password", "keystore_kbytes"),
        ("[tpm]\nkind = 'swtpm'", "kind", "backend"),
        ("[pef]\nenable = true", "enable", "secure_memory_mib"),
        ("[vtpm]\nkind = 'swtpm'", "vtpm", "tables [hcalld], [tpm], [pef] and [sev]"),
    ],
)
def test_parse_when_a_key_is_unknown_then_the_message_names_it_and_those_there_are(
    text: str, named: str, told: str
):
    message = refusal(text)
    assert f"unknown field `{named}`" in message
    assert told in message


@pytest.mark.parametrize(
    "text",
    ["keystore_kbytes", "= 3", "[hcalld", "a = 1\na = 2", "x = '\x00'", "keystore_kbytes = 064"],
)
def test_parse_when_it_is_no_toml_then_the_message_says_where(text: str):
    message = refusal(text)
    assert "not valid TOML" in message
    assert "(at " in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("asids = 0", "asids = 0: expected 1 to"),
        ("asids = 1007", "asids = 1007: expected 1 to 1006"),
        ("api_major = 256\napi_minor = -1\nbuild = 256", "build = 256: expected 0 to 255"),
    ],
)
def test_parse_when_a_platform_cannot_be_so_then_it_is_refused(text: str, told: str):
    message = refusal(f"[sev]\n{text}")
    assert "[sev]: " in message
    assert told in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tpm]\nbackend = 'swtpm'", "[tpm]"),
        ("[pef]\nenabled = true", "[pef]"),
        ("[pks]\nmax_label_size = 300", "[pks]"),
        ("[hcalld]\ndeadline_ms = 500", "[hcalld]"),
        (f"[hcalld]\nuuid = '{UUID}'", "[hcalld]"),
        ("[vtpm]", "[vtpm]"),
        ("[tpm]\n[pef]", "[tpm], [pef]"),
    ],
)
def test_parse_when_a_platform_has_a_guests_table_then_it_is_refused(text: str, named: str):
    for whole in (f"[sev]\n{text}", f"{text}\n[sev]\nasids = 3"):
        message = refusal(whole)
        assert message.startswith(f"lpar7.toml: {named}: ")
        assert "expected that table and nothing else" in message


def test_parse_when_a_platform_has_an_attribute_then_it_is_refused():
    message = refusal("secure_boot = 2\nkeystore_kbyte = 3\n[sev]\nasids = 3")
    assert message.startswith("lpar7.toml: secure_boot, keystore_kbyte: ")


def test_parse_when_a_platform_has_its_table_alone_then_it_is_a_platforms():
    profile = parse("[sev]\nasids = 3")
    assert profile.is_platform
    assert profile.sev.asids == 3
    assert not parse("[pef]\nenabled = true").is_platform


@pytest.mark.parametrize("text", ["hcalld = 3", "pks = 3", "pks = []", "hcalld = []", "sev = 3"])
def test_parse_when_a_table_is_something_else_then_it_is_refused(text: str):
    assert "Expected `object`" in refusal(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keystore_kbytes = 3", "0 (off) or 4 to 128"),
    ],
)
def test_parse_when_values_do_not_fit_this_version_then_the_message_says_what_to_do(
    text: str, told: str
):
    assert told in refusal(text)


# -- a directory ---------------------------------------------------------------------------------


def write(folder: pathlib.Path, **files: str) -> pathlib.Path:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def test_orders_when_parsed_then_they_are_what_the_profile_names_and_no_more():
    text = "keystore_kbytes = 64\n[pks]\nobject_overhead = 7\n[hcalld]\nname = 'x'"

    profile = parse_profile(text, "lpar7", "lpar7.toml")

    assert profile.orders == {"keystore_kbytes": 64, "pks.object_overhead": 7}
    assert parse_profile("", "lpar7", "lpar7.toml").orders == {}


def test_of_partition_when_asked_then_the_guests_name_does_not_matter(tmp_path: pathlib.Path):
    profiles = Profiles(
        write(
            tmp_path,
            lpar7="secure_boot = 1\n[hcalld]\nname = 'other'",
            other7="secure_boot = 0",
            default="secure_boot = 2",
        )
    )

    assert profiles.of_partition("lpar7").orders == {"secure_boot": 1}
    assert profiles.of_partition("other7").orders == {"secure_boot": 0}
    unknown = profiles.of_partition("third")
    assert (unknown.partition, unknown.orders) == ("third", {"secure_boot": 2})
    assert Profiles(None).of_partition("third").source == "built-in"


def test_profiles_when_there_is_no_directory_then_each_guest_gets_the_defaults():
    profile = Profiles(None).find("lpar7", NO_UUID)
    assert (profile.partition, profile.source) == ("lpar7", "built-in")
    assert profile.attributes == PartitionAttributes()


def test_find_when_a_file_has_the_guests_name_then_it_is_its(tmp_path: pathlib.Path):
    profiles = Profiles(write(tmp_path, lpar7="keystore_kbytes = 8"))
    profile = profiles.find("lpar7", NO_UUID)
    assert profile.partition == "lpar7"
    assert profile.source == str(tmp_path / "lpar7.toml")
    assert profile.attributes.keystore_kbytes == 8


def test_find_when_the_profile_names_a_guest_then_the_file_names_the_partition(
    tmp_path: pathlib.Path,
):
    profiles = Profiles(write(tmp_path, alpha='hcalld.name = "beta"'))
    assert profiles.find("beta", NO_UUID).partition == "alpha"


def test_find_when_the_uuid_matches_then_it_goes_before_the_name(tmp_path: pathlib.Path):
    write(tmp_path, by_uuid=f'hcalld.uuid = "{UUID}"', by_name="")
    profiles = Profiles(tmp_path)
    assert profiles.find("by_name", UUID_BYTES).partition == "by_uuid"
    assert profiles.find("by_name", uuid.UUID(OTHER_UUID).bytes).partition == "by_name"
    assert profiles.find("by_name", NO_UUID).partition == "by_name"


@pytest.mark.parametrize("spelling", [UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}"])
def test_find_when_a_uuid_is_spelled_otherwise_then_it_is_the_same(
    tmp_path: pathlib.Path, spelling: str
):
    profiles = Profiles(write(tmp_path, guest=f'hcalld.uuid = "{spelling}"'))
    assert profiles.find("whatever", UUID_BYTES).partition == "guest"


@pytest.mark.parametrize(
    ("name", "uuid_bytes", "partition"),
    [
        ("stranger", NO_UUID, "stranger"),
        ("stranger", UUID_BYTES, "stranger"),
        ("", UUID_BYTES, UUID),
        ("", NO_UUID, UNNAMED_PARTITION),
    ],
)
def test_find_when_nothing_matches_then_default_toml_holds_for_a_partition_of_its_own(
    tmp_path: pathlib.Path, name: str, uuid_bytes: bytes, partition: str
):
    profiles = Profiles(write(tmp_path, default="keystore_kbytes = 16", other=""))
    profile = profiles.find(name, uuid_bytes)
    assert profile.partition == partition
    assert profile.source == str(tmp_path / "default.toml")
    assert profile.attributes.keystore_kbytes == 16


@pytest.mark.parametrize(
    ("name", "uuid_bytes", "who"),
    [("stranger", NO_UUID, "'stranger'"), ("", UUID_BYTES, UUID), ("", NO_UUID, "unnamed")],
)
def test_find_when_unknown_guests_are_refused_then_the_message_says_who_and_what_to_do(
    tmp_path: pathlib.Path, name: str, uuid_bytes: bytes, who: str
):
    profiles = Profiles(write(tmp_path, default="", lpar7=""), refuse_unknown=True)
    assert profiles.find("lpar7", NO_UUID).partition == "lpar7"
    with pytest.raises(ConfigError) as raised:
        profiles.find(name, uuid_bytes)
    message = str(raised.value)
    assert f"no profile for guest {who}" in message
    assert str(tmp_path) in message
    assert "--refuse-unknown" in message


def test_find_when_a_guest_has_the_name_of_anothers_partition_then_it_is_refused(
    tmp_path: pathlib.Path,
):
    # Guest "beta" has partition "alpha"; a guest called "alpha" must not get at it.
    profiles = Profiles(write(tmp_path, alpha='hcalld.name = "beta"'))
    with pytest.raises(ConfigError, match=r"partition 'alpha' .* guest 'beta'") as raised:
        profiles.find("alpha", NO_UUID)
    assert str(tmp_path / "alpha.toml") in str(raised.value)


def test_profiles_when_two_claim_a_name_then_both_files_are_named(tmp_path: pathlib.Path):
    write(tmp_path, a='hcalld.name = "guest"', b='hcalld.name = "guest"')
    with pytest.raises(ConfigError, match="guest name 'guest' is claimed by") as raised:
        Profiles(tmp_path)
    assert "a.toml" in str(raised.value)
    assert "b.toml" in str(raised.value)


def test_profiles_when_a_name_is_another_files_then_both_files_are_named(tmp_path: pathlib.Path):
    write(tmp_path, guest="", other='hcalld.name = "guest"')
    with pytest.raises(ConfigError, match="guest name 'guest' is claimed by"):
        Profiles(tmp_path)


def test_profiles_when_two_claim_a_uuid_then_both_files_are_named(tmp_path: pathlib.Path):
    write(tmp_path, a=f'hcalld.uuid = "{UUID}"', b=f'hcalld.uuid = "{UUID.upper()}"')
    with pytest.raises(ConfigError, match=r"(?i)uuid 5f6e.* is claimed by") as raised:
        Profiles(tmp_path)
    assert "a.toml" in str(raised.value)
    assert "b.toml" in str(raised.value)


@pytest.mark.parametrize("key", [f'uuid = "{UUID}"', 'name = "guest"'])
def test_profiles_when_the_default_names_a_guest_then_it_is_refused(
    tmp_path: pathlib.Path, key: str
):
    with pytest.raises(ConfigError, match=r"default\.toml: .*for guests without a profile"):
        Profiles(write(tmp_path, default=f"hcalld.{key}"))


def test_profiles_when_the_default_is_a_platforms_then_it_is_refused(tmp_path: pathlib.Path):
    # A guest without a profile would be given it.
    with pytest.raises(ConfigError, match=r"default\.toml: \[sev\]: .*for guests without a prof"):
        Profiles(write(tmp_path, default="[sev]"))


def test_profiles_when_a_guest_wants_a_platforms_then_it_is_refused(tmp_path: pathlib.Path):
    profiles = Profiles(write(tmp_path, here="[sev]\nasids = 3", lpar7="[tpm]"))

    told = r"here\.toml is a SEV platform's, and no guest's"
    with pytest.raises(ConfigError, match=told):
        profiles.find("here", NO_UUID)
    with pytest.raises(ConfigError, match=told):
        profiles.of_partition("here")
    assert profiles.find_platform("here").sev.asids == 3


def test_profiles_when_a_client_wants_a_guests_then_it_is_refused(tmp_path: pathlib.Path):
    profiles = Profiles(write(tmp_path, here="[sev]", lpar7="[pef]\nenabled = true"))

    with pytest.raises(ConfigError, match=r"'lpar7' is a guest, and no SEV platform"):
        profiles.find_platform("lpar7")
    assert profiles.find_platform("").source == "built-in"


def test_profiles_when_a_uuid_is_nil_then_it_is_refused(tmp_path: pathlib.Path):
    # It is what a guest without -uuid has, so it would match every one of them.
    with pytest.raises(ConfigError, match=r"uuid.*-uuid"):
        Profiles(write(tmp_path, guest=f'hcalld.uuid = "{uuid.UUID(int=0)}"'))


def test_profiles_when_there_are_other_files_then_they_are_left_alone(tmp_path: pathlib.Path):
    write(tmp_path, lpar7="")
    (tmp_path / "README").write_text("not TOML at all [")
    (tmp_path / "lpar8.toml.bak").write_text("neither [")
    assert Profiles(tmp_path).find("lpar8", NO_UUID).source == "built-in"


def test_profiles_when_the_directory_is_not_there_then_the_message_says_so(tmp_path: pathlib.Path):
    with pytest.raises(ConfigError, match="missing: not a directory; expected one with"):
        Profiles(tmp_path / "missing")


def test_profiles_when_it_is_a_file_then_the_message_says_so(tmp_path: pathlib.Path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigError, match="not a directory"):
        Profiles(path)


def test_profiles_when_a_file_is_not_utf8_then_the_message_names_it(tmp_path: pathlib.Path):
    (tmp_path / "lpar7.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match=r"lpar7\.toml: cannot read"):
        Profiles(tmp_path)


def test_profiles_when_a_file_is_wrong_then_the_daemon_does_not_start(tmp_path: pathlib.Path):
    write(tmp_path, good="", wrong="secure_boot = 9")
    with pytest.raises(ConfigError, match=r"wrong\.toml: .*secure_boot"):
        Profiles(tmp_path)


@pytest.mark.parametrize("which", ["directory", "file"])
def test_profiles_when_we_may_not_read_then_the_message_says_so(which: str):
    # Not pytest's folder, whose parents are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write(folder, lpar7="secure_boot = 2").chmod(0o755)
        (folder if which == "directory" else folder / "lpar7.toml").chmod(0)
        with unprivileged(), pytest.raises(ConfigError, match="Permission denied"):
            Profiles(folder)
        folder.chmod(0o700)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root is stopped by no permissions; nobody is."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


# -- the TPM ----------------------------------------------------------------------------


def test_parse_when_there_is_no_table_then_there_is_no_tpm():
    assert parse("").tpm == TpmChoice(backend="none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('backend = "none"', TpmChoice()),
        ('backend = "swtpm"', TpmChoice(backend="swtpm")),
        (
            'backend = "swtpm"\nprogram = "/opt/swtpm"\ntimeout_ms = 100',
            TpmChoice(backend="swtpm", program="/opt/swtpm", timeout_ms=100),
        ),
        (
            'backend = "socket"\npath = "/run/tpm.sock"',
            TpmChoice(backend="socket", path="/run/tpm.sock"),
        ),
        (
            'backend = "device"\npath = "/dev/tpmrm0"\ntimeout_ms = 600000',
            TpmChoice(backend="device", path="/dev/tpmrm0", timeout_ms=600_000),
        ),
    ],
)
def test_parse_when_a_tpm_is_chosen_then_it_is_no_attribute(text: str, expected: TpmChoice):
    profile = parse(f"[tpm]\n{text}")
    assert profile.tpm == expected
    assert profile.orders == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('backend = "tpm2"', "backend"),
        ("backend = 1", "backend"),
        ('backend = "socket"', "needs a path"),
        ('backend = "device"', "needs a path"),
        ('backend = "device"\npath = ""', "path"),
        ('backend = "device"\npath = "tpm0"', "not absolute"),
        ('backend = "swtpm"\npath = "/run/x"', 'path is for backend "socket" or "device"'),
        ('path = "/run/x"', 'path is for backend "socket" or "device"'),
        ('backend = "socket"\npath = "/x"\nprogram = "y"', 'program is for backend "swtpm"'),
        ("timeout_ms = 99", "timeout_ms"),
        ("timeout_ms = 600001", "timeout_ms"),
    ],
)
def test_parse_when_the_tpm_makes_no_sense_then_the_message_says_what_does(text: str, said: str):
    message = refusal(f"[tpm]\n{text}")
    assert "[tpm]" in message
    assert said in message
    assert "keys are: backend, path, program, timeout_ms" in message


def test_parse_when_the_tpm_is_no_table_then_it_is_refused():
    assert "[tpm]" in refusal("tpm = 1")


# -- secure mode ----------------------------------------------------------------------------


def test_parse_when_there_is_no_table_then_the_guest_stays_a_normal_vm():
    assert parse("").pef == PefChoice()
    assert not parse("").pef.enabled
    assert parse("").pef.settings() == PefSettings()


def test_parse_when_secure_mode_is_chosen_then_it_is_no_attribute():
    profile = parse("[pef]\nenabled = true\npage_shift = 12\nsecure_memory_mib = 3")
    assert profile.orders == {}
    assert profile.pef == PefChoice(enabled=True, page_shift=12, secure_memory_mib=3)
    settings = profile.pef.settings()
    assert settings.page_shift == 12
    assert settings.hypervisor.resident_pages == 48


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("enabled = 1", "enabled"),
        ("page_shift = 13", "page_shift"),
        ("secure_memory_mib = 0", "secure_memory_mib"),
        ("secure_memory_mib = 16777217", "secure_memory_mib"),
    ],
)
def test_parse_when_secure_mode_makes_no_sense_then_told(text: str, said: str):
    message = refusal(f"[pef]\n{text}")
    assert "[pef]" in message
    assert said in message
