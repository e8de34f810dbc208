# SPDX-License-Identifier: Apache-2.0
"""An apt of one's own, beside the machine's: another suite, another architecture.

It asks the mirror that the machine's own apt is configured with, keeps its lists in the cache
directory, verifies signatures with Debian's keyring as always, and leaves the machine's
configuration and package database alone; so it needs no root.

The mirror's address comes from the machine at run time and is written nowhere but in the cache.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import deb822, pins
from .errors import ProvisionError
from .progress import output, run, say

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)

ARCHITECTURE = pins.GUEST_ARCHITECTURE
"""The usual one. Packages for all architectures are in its indexes as well."""

RETRY_AFTER_S = (3, 10, 30, 60)
"""Pauses after a failed attempt; a mirror in the middle of its sync recovers within a minute."""

EXPIRED = " is expired (invalid since "
"""What apt says of an index past the date in its Valid-Until field."""

TARGET_FORMAT = "$(REPO_URI)\t$(ORIGIN)\t$(LABEL)\t$(CODENAME)"


def choose_mirror(targets: str) -> str | None:
    """Finds Debian's main archive among apt's index targets.

    Args:
        targets: Lines of :data:`TARGET_FORMAT`. Origin, label and code name are empty as long as
            ``apt-get update`` has never run.

    Returns:
        The archive's address, or nothing when none of the targets is Debian's main archive.
    """
    unnamed = None
    for line in targets.splitlines():
        fields = line.split("\t")
        if len(fields) != 4 or not fields[0].startswith(("http:", "https:", "file:", "copy:")):
            continue
        address, origin, label, codename = fields
        if origin == "Debian" and label == "Debian" and "-" not in codename:
            return address
        if not origin and re.search(r"/debian/?$", address):
            unnamed = unnamed or address
    return unnamed


def mirror(environ: Mapping[str, str]) -> str:
    """Gives the address of the Debian archive that this machine uses.

    Raises:
        ProvisionError: There is none.
    """
    named = environ.get("HCALLD_DEBIAN_MIRROR")
    if named:
        return named
    found = choose_mirror(
        output(["apt-get", "indextargets", "--format", TARGET_FORMAT, "Created-By: Packages"])
    )
    if found is None:
        raise ProvisionError(
            "none of this machine's apt sources is Debian's main archive (origin and label "
            "`Debian`); add one and run `apt-get update`, or name one in HCALLD_DEBIAN_MIRROR"
        )
    return found


def keyring() -> Path:
    """Gives the keyring that verifies the archive.

    Raises:
        ProvisionError: There is none.
    """
    for path in KEYRINGS:
        if path.is_file():
            return path
    raise ProvisionError(
        f"the keyring {KEYRINGS[0]} is not there; install the package debian-archive-keyring"
    )


def source_line(
    address: str, suite: str, keys: Path, *, is_source: bool, architecture: str = ARCHITECTURE
) -> str:
    """Gives the one line of sources.list(5) for a suite."""
    if is_source:
        return f"deb-src [signed-by={keys}] {address} {suite} main\n"
    return f"deb [arch={architecture} signed-by={keys}] {address} {suite} main\n"


def configuration(directory: Path, architecture: str = ARCHITECTURE) -> str:
    """Gives the apt.conf(5) that keeps everything of apt's below a directory."""
    return "\n".join(
        [
            f'Dir::Etc::SourceList "{directory}/sources.list";',
            'Dir::Etc::SourceParts "-";',
            'Dir::Etc::Preferences "-";',
            'Dir::Etc::PreferencesParts "-";',
            f'Dir::State "{directory}/state";',
            f'Dir::State::Lists "{directory}/lists";',
            'Dir::State::Status "/dev/null";',
            f'Dir::Cache "{directory}/cache";',
            f'APT::Architecture "{architecture}";',
            "#clear APT::Architectures;",
            f'APT::Architectures {{ "{architecture}"; }};',
            # Everything below the directory belongs to whoever runs this, root or not; apt's own
            # unprivileged user could not read it.
            'APT::Sandbox::User "root";',
            'APT::Get::List-Cleanup "false";',
            # Without it a suite whose index could not be had is only a warning.
            'APT::Update::Error-Mode "any";',
            'Acquire::Languages "none";',
            'Acquire::Retries "3";',
            # Only the index of packages: no contents, translations or icons of other packages'
            # configuration.
            "#clear APT::Update::Post-Invoke;",
            "#clear APT::Update::Post-Invoke-Success;",
            "#clear APT::Update::Pre-Invoke;",
            "",
        ]
    )


class AptSide:
    """Apt for one suite, either its sources or its packages for an architecture of guests."""

    def __init__(
        self,
        root: Path,
        suite: str,
        *,
        is_source: bool,
        architecture: str = ARCHITECTURE,
        environ: Mapping[str, str] = os.environ,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.suite = suite
        self.is_source = is_source
        self.architecture = architecture
        self.kind = "source" if is_source else architecture
        self.directory = root / f"{suite}-{self.kind}"
        self.environ = environ
        self.pause = pause
        self.is_updated = False

    @property
    def log(self) -> Path:
        """The file that keeps what apt said."""
        return self.directory / "apt.log"

    def command(self, program: str, *words: str) -> list[str]:
        """Gives an apt command line under this configuration."""
        return [program, "-c", str(self.directory / "apt.conf"), *words]

    def update(self) -> None:
        """Fetches the suite's index, once for this object.

        Raises:
            ProvisionError: It could not be had in any of the attempts.
        """
        if self.is_updated:
            return
        for part in ("lists/partial", "cache/archives/partial", "state"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        line = source_line(
            mirror(self.environ),
            self.suite,
            keyring(),
            is_source=self.is_source,
            architecture=self.architecture,
        )
        (self.directory / "sources.list").write_text(line, encoding="utf-8")
        settings = configuration(self.directory, self.architecture)
        (self.directory / "apt.conf").write_text(settings, encoding="utf-8")
        what = f"index of Debian {self.suite} ({self.kind})"
        say(f"fetching the {what}")
        self.retry(what, lambda: self.update_once(what))
        self.is_updated = True

    def update_once(self, what: str) -> None:
        """Fetches the index; that of a mirror which is weeks behind is taken, and said.

        Signatures stay checked. An expiry guards installed systems against being kept from
        updates; here nothing is installed, and a file is held against its pinned digest.
        """
        try:
            run(what, self.command("apt-get", "update"), log=self.log)
        except ProvisionError as error:
            if EXPIRED not in str(error):
                raise
            say(f"{what}: past its date, as the mirror is behind; taking it nevertheless")
            late = self.command("apt-get", "-o", "Acquire::Check-Valid-Until=false", "update")
            run(what, late, log=self.log)

    def retry(self, what: str, attempt: Callable[[], None]) -> None:
        """Makes an attempt until it succeeds or the pauses are used up."""
        for pause in RETRY_AFTER_S:
            try:
                attempt()
            except ProvisionError as error:
                said = [line.strip() for line in str(error).splitlines() if "E: " in line]
                say(f"{what}: failed ({'; '.join(said) or 'see ' + str(self.log)})")
                say(f"{what}: trying again in {pause} s, as a mirror that is being synced recovers")
                self.pause(pause)
            else:
                return
        attempt()

    def package_names(self, prefix: str) -> list[str]:
        """Gives the names of the packages that start so."""
        self.update()
        return output(self.command("apt-cache", "pkgnames", prefix)).split()

    def candidates(self, package: str) -> list[deb822.IndexedFile]:
        """Gives the versions of a package that the suite has, newest first as apt sorts them."""
        self.update()
        if self.is_source:
            shown = output(self.command("apt-cache", "showsrc", "--only-source", package))
            return newest_first(deb822.source_tarballs(shown, package))
        if package not in self.package_names(package):
            return []
        return newest_first(deb822.binary_files(output(self.command("apt-cache", "show", package))))

    def download(self, package: str, version: str, directory: Path) -> None:
        """Downloads a package, or a source package's upstream tarball, into a directory.

        Apt has verified it against the signed index when this returns.
        """
        self.update()
        wanted = f"{package}={version}"
        words = (
            ["source", "--download-only", "--only-source", "--tar-only", wanted]
            if self.is_source
            else ["download", wanted]
        )
        say(f"downloading {package} {version} from Debian {self.suite}")
        self.retry(
            package,
            lambda: run(package, self.command("apt-get", *words), log=self.log, cwd=directory),
        )

    def download_all(self, wanted: Sequence[tuple[str, str]], directory: Path) -> bool:
        """Downloads packages of the guests' architecture into a directory, if all are there.

        It is tried once: who needs them asks for each, where there is more to say.
        """
        self.update()
        words = [f"{package}={version}" for package, version in wanted]
        say(f"downloading {len(words)} packages from Debian {self.suite}")
        try:
            run(
                "packages", self.command("apt-get", "download", *words), log=self.log, cwd=directory
            )
        except ProvisionError:
            return False
        return True


def newest_first(files: list[deb822.IndexedFile]) -> list[deb822.IndexedFile]:
    """Sorts by Debian version, newest first."""
    rest = list(files)
    ordered: list[deb822.IndexedFile] = []
    while rest:
        newest = rest[0]
        for file in rest[1:]:
            if is_newer(file.version, newest.version):
                newest = file
        ordered.append(newest)
        rest.remove(newest)
    return ordered


def is_newer(version: str, other: str) -> bool:
    """Says whether a Debian version is greater than another, as dpkg(1) has it."""
    try:
        output(["dpkg", "--compare-versions", version, "gt", other])
    except ProvisionError:
        return False
    return True
