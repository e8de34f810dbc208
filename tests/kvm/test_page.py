# SPDX-License-Identifier: Apache-2.0
"""``docs/sev.md`` with QEMU and libvirt: commands that need ``/dev/kvm``, as they stand there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Require
from tests.integration.test_sev_page import (
    FROM_NOTHING,
    WITH_LIBVIRT,
    WITH_QEMU,
    Page,
    check_secret,
    open_page,
)
from tests.kvm.virsh import as_user, ending, give, own

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]

SECRET = "secret: 736869e5-84f0-4973-92ec-06879ce3da0b 11 bytes, text: open sesame\n"


@pytest.fixture
def page(require: Require, socket_dir: Path) -> Iterator[Page]:
    """Somebody who is not root, for whom libvirt starts a daemon."""
    give(socket_dir)
    # He may read this tree, wherever it is. His QEMU may not, for libvirt takes that from it.
    before = as_user("--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override")
    library = own(require("sev-library"), socket_dir)
    environ = {"HCALLD_SEV_LIBRARY": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
    with ending(socket_dir), open_page(require, socket_dir, before=before, **environ) as opened:
        yield opened


def test_qemu_and_libvirt_give_their_guest_the_owners_secret(page: Page, require: Require) -> None:
    require("nc")
    require("virsh")
    check_secret(page, page.read(FROM_NOTHING))
    said = page.read(WITH_QEMU)
    assert '"state": "launch-secret"' in said
    assert '"policy": 9' in said
    assert '{"error"' not in said
    assert "\nfirmware: done\n" in said
    assert SECRET in said

    said = page.read(WITH_LIBVIRT)
    assert "<sev supported='yes'>" in said
    assert "reduced-phys-bits : 1\n" in said
    assert "sev-policy     : 9\n" in said
    assert "OK: Looks good to me\nOK: Injected 1 secrets\n" in said
    assert SECRET in said
    assert "Domain 'guest' destroyed\n" in said
