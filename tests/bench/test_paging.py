# SPDX-License-Identifier: Apache-2.0
"""Page-out and page-in of 64 KiB in process against AES-256-GCM on as many bytes.

A turn is what both halves do to a page, from its content to what the reply says. The whole
of it is a command or QEMU's PAGE_IN: for a page that goes out a turn that finds that the
content is missing, and what is asked of guest memory; and the records of both halves.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.bench.inprocess import median_us
from tests.bench.results import Results
from tests.bench.securevm import PAGE_SIZE, SecureInProcess, medians_in_turn_us

from hcalld.core.outcome import Outcome
from hcalld.domain.ultravisor.abi import ENTROPY_SIZE, PAGE_SHIFT, PageContent
from hcallproto.abi.families import svm
from hcallproto.abi.returns import H, U

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

COUNT = 600
ROUNDS = 9
GOAL = 5
PAGE = 0x300_0000
NAMES = {"out": "page-out", "in": "page-in"}


def test_paging_in_process(results: Results) -> None:
    secure = SecureInProcess()
    machine = secure.machine
    data = os.urandom(PAGE_SIZE)
    content = PageContent(data, os.urandom(ENTROPY_SIZE))

    def turn(number: int) -> Outcome:
        begun = machine.turn({PAGE: content})
        assert begun.hypercall(number, PAGE, 0, PAGE_SHIFT).status is H.SUCCESS
        try:
            machine.finish(begun, U.SUCCESS).send(None)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
        raise AssertionError("a reply has room for one page")

    turns: dict[str, Callable[[], object]] = {
        "out": functools.partial(turn, svm.PAGE_OUT.number),
        "in": functools.partial(turn, svm.PAGE_IN.number),
    }
    whole: dict[str, Callable[[], object]] = {
        "out": lambda: secure.drive(machine.page_out([PAGE])),
        "in": lambda: secure.drive(machine.touch(PAGE)),
    }
    cipher, nonce = AESGCM(os.urandom(32)), os.urandom(12)
    sealed = cipher.encrypt(nonce, data, None)
    raw = {
        "out": functools.partial(cipher.encrypt, nonce, data, None),
        "in": functools.partial(cipher.decrypt, nonce, sealed, None),
    }
    floors: dict[str, list[float]] = {}
    times: dict[str, dict[str, list[float]]] = {"a turn of": {}, "the whole of": {}}
    for _ in range(ROUNDS):
        for name, function in raw.items():
            floors.setdefault(name, []).append(median_us(function, COUNT))
        for what, measured in zip(times, (turns, whole), strict=True):
            for name, took in medians_in_turn_us(measured, COUNT).items():
                times[what].setdefault(name, []).append(took)
    for what, each in times.items():
        for name, its in each.items():
            ratios = [one / floor for one, floor in zip(its, floors[name], strict=True)]
            print(
                f"\n{what} a {NAMES[name]} {min(its):.1f} us, AESGCM {min(floors[name]):.1f} us, "
                f"ratios {min(ratios):.1f} to {max(ratios):.1f}",
                end="",
            )
            results.ratio(
                f"{what} a {NAMES[name]} of 64 KiB in process / raw AESGCM",
                min(its),
                min(floors[name]),
                GOAL,
            )
