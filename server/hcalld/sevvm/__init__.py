# SPDX-License-Identifier: Apache-2.0
"""A VM without a processor: what a hypervisor does with SEV, and nothing else.

Its memory is in this process. It gives a daemon the commands that QEMU gives, in QEMU's order, so
that launches, secrets and migration can be tried where there is no ``/dev/kvm``. Begin with
``machine.py``; ``launching.py`` is a launch as QEMU has it, ``moving.py`` a migration,
``streams.py`` what goes between the two sides.
"""
