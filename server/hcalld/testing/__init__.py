# SPDX-License-Identifier: Apache-2.0
"""Public fakes: run handlers without a guest, a socket or an event loop.

``run_pure`` drives one handler with answers that the test chooses; ``PureMachine`` is a
whole guest with registers, memory, models and a store.
"""

from hcalld.stores.memory import MemoryStore
from hcalld.testing.driver import Script, ScriptError, run_pure
from hcalld.testing.guest import FakeGuest
from hcalld.testing.machine import PureMachine, UndeclaredError

__all__ = [
    "FakeGuest",
    "MemoryStore",
    "PureMachine",
    "Script",
    "ScriptError",
    "UndeclaredError",
    "run_pure",
]
