# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's half of a secure VM, as KVM implements it.

Source: Linux 7.2 ``arch/powerpc/kvm/book3s_hv_uvmem.c``. It talks to the ultravisor by
ultracalls only, and of ``hcalld.domain.ultravisor`` it imports ``abi`` alone.
"""
