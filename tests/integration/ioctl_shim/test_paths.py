# SPDX-License-Identifier: Apache-2.0
"""Who looks for a device before he opens it, and programs that have nothing to do with SEV."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.e2e.sevprogram import FAKE_KVM_VARIABLE, PAGE, SEV_ISSUE_CMD, SevProgram
from tests.integration.ioctl_shim.conftest import Built, SevShim

from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode

ACCESS_FUNCTIONS = ("access", "euidaccess", "eaccess", "faccessat")
STAT_FUNCTIONS = (
    "stat",
    "lstat",
    "fstatat",
    "stat64",
    "lstat64",
    "fstatat64",
    "statx",
    "__xstat",
    "__lxstat",
    "__fxstatat",
    "__xstat64",
    "__lxstat64",
    "__fxstatat64",
)
DEVICE = stat.S_IFCHR | 0o600
AT_EMPTY_PATH = 0x1000

PROCESS_VM_READV = 310
CLOSE_RANGE = 436
"""Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl)."""


@pytest.fixture
def program(shim: SevShim) -> SevProgram:
    return shim.program(None)


def preloaded(built: Built, **variables: str) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": str(built.library), **variables}


# -- looking ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ACCESS_FUNCTIONS)
def test_access_when_of_a_device_then_it_may_be_read_and_written(
    program: SevProgram, function: str
):
    for path in ("/dev/sev", "/dev/kvm"):
        for mode in (os.F_OK, os.R_OK, os.W_OK, os.R_OK | os.W_OK):
            assert program.do("look", function, path, mode) == 0
        assert program.ask("look", function, path, os.X_OK) == (-1, errno.EACCES)
        null = program.ask("look", function, "/dev/null", 8)
        assert program.ask("look", function, path, 8) == null
    assert program.ask("look", function, "/dev/sevx", os.F_OK) == (-1, errno.ENOENT)
    assert program.ask("look", function, "/dev/se", os.F_OK) == (-1, errno.ENOENT)


@pytest.mark.parametrize("function", STAT_FUNCTIONS)
def test_stat_when_of_a_device_then_it_is_a_character_device_of_the_programs(
    program: SevProgram, function: str, tmp_path: Path
):
    assert program.do("look", function, "/dev/sev") == DEVICE
    assert program.do("look", function, "/dev/kvm") == DEVICE
    assert program.ask("look", function, "/dev/sevx") == (-1, errno.ENOENT)
    assert program.ask("look", function, "/dev/sev/x") == (-1, errno.ENOENT)
    assert program.do("look", function, tmp_path) == tmp_path.lstat().st_mode
    null = program.do("look", function, "/dev/null")
    assert null == os.lstat("/dev/null").st_mode


def test_stat_when_kvm_is_not_made_up_then_it_is_the_hosts(shim: SevShim):
    program = shim.program(None, environ={FAKE_KVM_VARIABLE: "0"})
    assert program.do("look", "stat", "/dev/sev") == DEVICE
    value, error = program.ask("look", "stat", "/dev/kvm")
    assert (value if not error else None) == (
        os.stat("/dev/kvm").st_mode if os.path.exists("/dev/kvm") else None
    )


def test_stat_when_the_path_is_bad_then_the_kernel_refuses_it(program: SevProgram):
    empty = program.put(b"\0")
    assert program.do("statbad", 0, empty) == 0
    assert program.ask("statbad", 4000, empty) == (-1, errno.EBADF)
    for address in (1, 1 << 47):
        assert program.ask("statbad", 0, address) == (-1, errno.EFAULT)
    # Newer kernels take NULL for an empty path.
    assert program.ask("statbad", 0, 0) in {(0, 0), (-1, errno.EFAULT)}


def test_stat_when_a_program_compares_then_it_has_opened_what_it_has_seen(built: Built):
    """What libvirt makes a copy of in a guest's own /dev is good for nothing."""
    code = """
import os
seen = os.stat("/dev/sev")
opened = os.open("/dev/sev", os.O_RDWR)
assert os.path.samestat(seen, os.fstat(opened))
assert (seen.st_uid, seen.st_gid) == (os.geteuid(), os.getegid())
assert seen.st_rdev == os.stat("/dev/null").st_rdev
assert os.listxattr("/dev/sev") == []
for flags in (os.O_CREAT | os.O_EXCL, os.O_DIRECTORY):
    try:
        os.open("/dev/sev", flags)
    except (FileExistsError, NotADirectoryError):
        continue
    raise AssertionError(flags)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=preloaded(built))


def test_shell_when_it_looks_for_the_device_then_it_is_there(built: Built):
    script = "test -c /dev/sev && test -r /dev/sev && test -w /dev/sev && ! test -e /dev/sevx"
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-c", script], check=True, env=preloaded(built))
    run = subprocess.run(
        ["ls", "-l", "/dev/sev"], check=True, env=preloaded(built), capture_output=True, text=True
    )
    assert run.stdout.startswith("crw-------")
    assert run.stderr == ""


ISSUE = """
import array, fcntl, os, socket, struct, sys
kind, number, request = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = number
if kind == "received":
    fd = socket.recv_fds(socket.socket(fileno=number), 1, 1)[1][0]
status = array.array("B", bytes(12))
where, _ = status.buffer_info()
fcntl.ioctl(fd, request, struct.pack("<IQI", 1, where, 0))
print(status[0], status[1])
"""
"""PLATFORM_STATUS: the version of the platform's API."""


@pytest.mark.parametrize("kind", ["inherited", "received"])
def test_device_when_another_program_has_opened_it_then_it_serves(
    shim: SevShim, built: Built, kind: str
):
    """By exec, and through a socket: the library of the one knows nothing of the other's."""
    environ = preloaded(built, HCALLD_SEV_SOCKET=str(shim.daemon("api_minor = 49")))
    number = "5"
    script = "exec 5<>/dev/sev; exec "
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if kind == "received":
            script = "exec "
            number = str(theirs.fileno())
            sender = "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); "
            sender += "socket.send_fds(s, [b'x'], [os.open('/dev/sev', os.O_RDWR)])"
            subprocess.run(
                [sys.executable, "-c", sender, str(ours.fileno())],
                check=True,
                env=environ,
                pass_fds=[ours.fileno()],
            )
        words = (sys.executable, "-c", ISSUE, kind, number, str(SEV_ISSUE_CMD))
        run = subprocess.run(
            ["bash", "-c", script + '"$@"', "bash", *words],
            env=environ,
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.stdout == "1 49\n", run.stderr
    assert run.stderr == ""


# -- others -----------------------------------------------------------------------------------


def test_exports_when_listed_then_the_readme_has_each(built: Built):
    """Whoever stands before a function of libc says so."""
    run = subprocess.run(
        ["nm", "--dynamic", "--defined-only", built.library],
        check=True,
        capture_output=True,
        text=True,
    )
    exported = {line.split()[2] for line in run.stdout.splitlines()}
    readme = (ROOT / "ioctl_shim" / "README.md").read_text("utf-8")
    assert exported == set(re.findall(r"`(\w+)\(\)`", readme))


def test_program_when_it_has_nothing_to_do_with_sev_then_nothing_is_said(built: Built):
    script = (
        "true | cat; (exit 3); python=$(command -v ls); exec 5</dev/null 6<&5 5<&-; ls / | wc -l"
    )
    for variables in ({}, {"HCALLD_SEV_DEBUG": "1"}):
        run = subprocess.run(
            ["bash", "-c", script],
            check=True,
            env=preloaded(built, **variables),
            capture_output=True,
            text=True,
        )
        assert run.stderr == ""


OTHER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <unistd.h>
struct stat;
int open(const char *path, int flags, ...)
{
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    write(2, "open\\n", 5);
    return next(path, flags, 0600);
}
int ioctl(int fd, unsigned long request, ...)
{
    int (*next)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    va_list args;
    va_start(args, request);
    void *arg = va_arg(args, void *);
    va_end(args);
    write(2, "ioctl\\n", 6);
    return next(fd, request, arg);
}
int access(const char *path, int mode)
{
    int (*next)(const char *, int) = dlsym(RTLD_NEXT, "access");
    write(2, "access\\n", 7);
    return next(path, mode);
}
int __xstat(int version, const char *path, struct stat *status)
{
    int (*next)(const char *, struct stat *) = dlsym(RTLD_NEXT, "stat");
    (void)version;
    write(2, "__xstat\\n", 8);
    return next(path, status);
}
"""


def test_library_when_another_is_preloaded_too_then_each_is_asked_by_its_own_name(
    shim: SevShim, built: Built, tmp_path: Path
):
    source, other = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(OTHER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", other, source], check=True)
    for order in (f"{other} {built.library}", f"{built.library} {other}"):
        program = shim.program(None, environ={"LD_PRELOAD": order})
        program.open("/dev/null")
        device = program.open("/dev/sev")
        program.do("look", "access", "/dev/sev", os.R_OK)
        assert program.do("look", "__xstat", "/dev/sev")
        assert program.ask("ioctl", 0, 0, 0) == (-1, errno.ENOTTY)
        argument = program.argument(sev.PLATFORM_STATUS, program.put(bytes(PAGE)))
        assert program.ask("ioctl", device, SEV_ISSUE_CMD, argument) == (-1, errno.ENODEV)
        said = [line for line in program.messages().splitlines() if "lib" not in line]
        assert said[0] == "open", order
        assert {"access", "__xstat", "ioctl"} <= set(said), order


def test_open_when_a_sandbox_forbids_to_read_memory_then_others_are_not_told(program: SevProgram):
    program.do("deny", PROCESS_VM_READV, errno.EPERM)
    for path in ("/dev/null", "/"):
        program.open(path, os.O_RDONLY)
    assert program.ask("open", "open", "/dev/sevx", 0) == (-1, errno.ENOENT)
    assert program.messages() == ""
    device = program.open("/dev/sev")
    argument = program.argument(sev.PLATFORM_STATUS, 0)
    for _ in range(2):
        assert program.ask("ioctl", device, SEV_ISSUE_CMD, argument) == (-1, errno.EFAULT)
    (line,) = program.messages().splitlines()
    assert "process_vm_readv: Operation not permitted; it must be allowed" in line


def test_closefrom_when_the_kernel_has_no_close_range_then_everything_is_closed_all_the_same(
    program: SevProgram,
):
    program.do("deny", CLOSE_RANGE, errno.ENOSYS)
    vm, null = program.create_vm(), program.open("/dev/null")
    assert program.ask("close_range", 3, 2000, 0) == (-1, errno.ENOSYS)
    # It has done nothing, so the VM is still one.
    assert program.issue(vm, sev.INIT).status == SevCode.ENODEV
    program.do("closefrom", 3)
    for fd in (vm, null):
        assert program.ask("fcntl", fd, 1, 0) == (-1, errno.EBADF)


def test_device_when_opened_as_a_path_only_then_it_takes_no_commands(program: SevProgram):
    device = program.open("/dev/sev", os.O_PATH)
    argument = program.argument(sev.PLATFORM_STATUS, program.put(bytes(PAGE)))
    assert program.ask("ioctl", device, SEV_ISSUE_CMD, argument) == (-1, errno.EBADF)
