# SPDX-License-Identifier: Apache-2.0
"""VMs of one SEV platform, in any order of commands: against what a person would say of them.

The model beside them knows states, and nothing of keys: which command is refused with what, which
handles there are, and what the platform's state is. A command that is refused has changed nothing.
"""

from __future__ import annotations

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.hcalld.families.sev.stages import CALLS, ES, GOOD, host

from hcalld.domain.sev.settings import SevSettings
from hcalld.testing.sev import SevClient
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode

VM_COUNT = 3
ASID_COUNT = 2

PATH = {
    "LAUNCH_START": ("none", "launching"),
    "LAUNCH_UPDATE_DATA": ("launching", "launching"),
    "LAUNCH_UPDATE_VMSA": ("launching", "launching"),
    "LAUNCH_MEASURE": ("launching", "measured"),
    "LAUNCH_SECRET": ("measured", "measured"),
    "LAUNCH_FINISH": ("measured", "running"),
    "SEND_START": ("running", "sending"),
    "SEND_UPDATE_DATA": ("sending", "sending"),
    "SEND_FINISH": ("sending", "sent"),
    "SEND_CANCEL": ("sending", "running"),
    "RECEIVE_START": ("none", "receiving"),
    "RECEIVE_UPDATE_DATA": ("receiving", "receiving"),
    "RECEIVE_UPDATE_VMSA": ("receiving", "receiving"),
    "RECEIVE_FINISH": ("receiving", "running"),
}
NUMBERS = ("none", "launching", "measured", "running", "sending", "receiving", "sent")
WHILE_IDLE = ("PEK_GEN", "PEK_CSR")
ALWAYS = ("PDH_GEN", "PDH_CERT_EXPORT", "GET_ID", "GET_ID2", "PLATFORM_STATUS")


@dataclasses.dataclass
class Expected:
    """One VM."""

    state: str | None = None
    """None: it is not initialized."""
    handle: int = 0


class Guests(RuleBasedStateMachine):
    """Commands in any order."""

    @initialize()
    def begin(self) -> None:
        self.host = host(SevSettings(asids=ASID_COUNT))
        self.clients: list[SevClient] = [self.host.connect() for _ in range(VM_COUNT)]
        self.expected = [Expected() for _ in range(VM_COUNT)]
        self.is_up = True
        self.next_handle = 1

    def guests(self) -> list[Expected]:
        return [one for one in self.expected if one.handle]

    def give(self, number: int, name: str, code: SevCode) -> dict[str, int]:
        client, hcall = self.clients[number], CALLS[name]
        client.free()
        fields = GOOD[name](client)
        before = client.snapshot()
        answer = client.command(hcall, **fields)
        assert answer.code is code, f"{name}: {answer.code!r}, {answer.why}; expected {code!r}"
        if code:
            assert client.snapshot() == before, f"{name} was refused and changed something"
        return answer.fields

    @rule(number=st.integers(0, VM_COUNT - 1))
    def init(self, number: int) -> None:
        one = self.expected[number]
        if one.state is not None:
            self.give(number, sev.ES_INIT.name, SevCode.EINVAL)
            return
        self.give(number, sev.ES_INIT.name, SevCode.SUCCESS)
        one.state, self.is_up = "none", True

    @rule(number=st.integers(0, VM_COUNT - 1), name=st.sampled_from(sorted(PATH)))
    def command(self, number: int, name: str) -> None:
        one, (before, after) = self.expected[number], PATH[name]
        begins = before == "none"
        if one.state is None:
            is_odd = name == "RECEIVE_UPDATE_DATA"
            code = SevCode.EINVAL if is_odd else SevCode.ENOTTY
        elif begins and not self.is_up:
            code = SevCode.INVALID_PLATFORM_STATE
        elif begins and one.handle:
            code = SevCode.ASID_OWNED
        elif begins and len(self.guests()) == ASID_COUNT:
            code = SevCode.RESOURCE_LIMIT
        elif not begins and not one.handle:
            code = SevCode.INVALID_GUEST
        elif one.state != before:
            code = SevCode.INVALID_GUEST_STATE
        else:
            code = SevCode.SUCCESS
        fields = self.give(number, f"KVM_SEV_{name}", code)
        if code is SevCode.SUCCESS:
            one.state = after
            if begins:
                one.handle, self.next_handle = self.next_handle, self.next_handle + 1
                assert fields == {"handle": one.handle}

    @rule(number=st.integers(0, VM_COUNT - 1), choice=st.integers(0, 5))
    def go_on(self, number: int, choice: int) -> None:
        """A command for the VM's state: any command would seldom get a guest to its end."""
        state = self.expected[number].state
        names = [name for name, (before, _) in PATH.items() if before == state]
        if names:
            self.command(number, names[choice % len(names)])
        else:
            self.init(number)

    @rule(number=st.integers(0, VM_COUNT - 1), name=st.sampled_from(WHILE_IDLE))
    def platform_command_while_idle(self, number: int, name: str) -> None:
        code = SevCode.INVALID_PLATFORM_STATE if self.guests() else SevCode.SUCCESS
        self.give(number, f"SEV_{name}", code)

    @rule(number=st.integers(0, VM_COUNT - 1), name=st.sampled_from(ALWAYS))
    def platform_command(self, number: int, name: str) -> None:
        self.give(number, f"SEV_{name}", SevCode.SUCCESS)

    @rule(number=st.integers(0, VM_COUNT - 1))
    def factory_reset(self, number: int) -> None:
        if self.guests():
            self.give(number, sev.FACTORY_RESET.name, SevCode.EBUSY)
        else:
            self.give(number, sev.FACTORY_RESET.name, SevCode.SUCCESS)
            self.is_up = False

    @rule(number=st.integers(0, VM_COUNT - 1))
    def close(self, number: int) -> None:
        self.clients[number].close()
        self.clients[number] = self.host.connect()
        self.expected[number] = Expected()

    @rule()
    def restart(self) -> None:
        """The daemon's: all VMs are gone."""
        self.host.restart()
        self.clients = [self.host.connect() for _ in range(VM_COUNT)]
        self.expected = [Expected() for _ in range(VM_COUNT)]
        self.is_up, self.next_handle = True, 1

    @invariant()
    def states_are_told(self) -> None:
        for number, one in enumerate(self.expected):
            client = self.clients[number]
            answer = client.command(sev.GUEST_STATUS)
            if one.handle:
                assert one.state is not None
                state = NUMBERS.index(one.state)
                assert answer.fields == {"handle": one.handle, "policy": ES, "state": state}
            else:
                wanted = SevCode.ENOTTY if one.state is None else SevCode.INVALID_GUEST
                assert answer.code is wanted
        status = self.clients[0].command(sev.PLATFORM_STATUS).fields
        count = len(self.guests())
        assert status["guest_count"] == count
        assert status["state"] == (2 if count else 1 if self.is_up else 0)


TestGuests = Guests.TestCase
TestGuests.settings = settings(
    max_examples=max(25, settings().max_examples // 4), stateful_step_count=40, deadline=None
)
