# SPDX-License-Identifier: Apache-2.0
"""Tests with Linux kernels."""

from __future__ import annotations

import concurrent.futures
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
    # Of the sizes that are taken, 2048 is the usual one and 3072 is told by no bit of GET_CONFIG.
    sizes = {"ca": 3072, "next_pk": 4096}

    def make(name: str, issuer: Identity | None = None) -> Identity:
        return authvar.identity(
            folder, name, bits=sizes.get(name, 2048), issuer=issuer, is_ca=name == "ca"
        )

    names = [field.name for field in dataclasses.fields(Keys) if field.name != "module"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = dict(zip(names, pool.map(make, names), strict=True))
    return Keys(**made, module=make("module", made["ca"]))
