# SPDX-License-Identifier: Apache-2.0
"""``docs/sev.md`` with QEMU: the commands that need ``/dev/kvm``, as they stand there."""

from __future__ import annotations

import pytest
from tests.conftest import Require
from tests.integration.test_sev_page import FROM_NOTHING, WITH_QEMU, Page, check_secret, page

__all__ = ["page"]

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]


def test_qemu_gives_its_guest_the_owners_secret(page: Page, require: Require) -> None:
    require("nc")
    require("sev-library")
    check_secret(page, page.read(FROM_NOTHING))
    said = page.read(WITH_QEMU)
    assert '"state": "launch-secret"' in said
    assert '"policy": 9' in said
    assert '{"error"' not in said
    assert "\nfirmware: done\n" in said
    assert "secret: 736869e5-84f0-4973-92ec-06879ce3da0b 11 bytes, text: open sesame\n" in said
