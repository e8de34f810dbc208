# SPDX-License-Identifier: Apache-2.0
"""Tests with Linux kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e import authvar
from tests.e2e.authvar import Identity
from tests.e2e.lab import lab

__all__ = ["keys", "lab"]


@dataclasses.dataclass(frozen=True)
class Keys:
    """Whose updates are right, whose are not, and what they bring."""

    pk: Identity
    next_pk: Identity
    kek: Identity
    stranger: Identity
    db: Identity
    revoked: Identity
    ca: Identity
    module: Identity
    """Issued by the CA."""


@pytest.fixture(scope="session")
def keys(require: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Keys and certificates for all tests of secure variables."""
    require("openssl")
    folder = tmp_path_factory.mktemp("keys")
    # One of 4096 bits, the other size that GET_CONFIG tells.
    ca = authvar.identity(folder, "ca", is_ca=True, bits=4096)
    return Keys(
        pk=authvar.identity(folder, "pk"),
        next_pk=authvar.identity(folder, "next-pk"),
        kek=authvar.identity(folder, "kek"),
        stranger=authvar.identity(folder, "stranger"),
        db=authvar.identity(folder, "db"),
        revoked=authvar.identity(folder, "revoked"),
        ca=ca,
        module=authvar.identity(folder, "module", issuer=ca),
    )
