# SPDX-License-Identifier: Apache-2.0
"""The ultravisor: which VMs are secure, what state their pages are in, what they may do.

Begin with ``page_states`` and ``vm_states`` (the tables), then ``ultravisor`` (the model and
the calls of a hypervisor) and ``sharing`` (calls of a VM); UV_ESM is
``hcalld.domain.pef.entry``. The hypervisor is ``hcalld.domain.hypervisor``; the two know
each other by ``abi`` alone.
"""
