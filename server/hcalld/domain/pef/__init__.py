# SPDX-License-Identifier: Apache-2.0
"""Ultravisor and hypervisor together, as one guest has them.

``machine`` is what handlers, resets and an operator call, ``entry`` is UV_ESM, ``verify``
says whether a guest is what its blob says. The halves are ``hcalld.domain.ultravisor`` and
``hcalld.domain.hypervisor``.
"""
