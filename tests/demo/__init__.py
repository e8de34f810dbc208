# SPDX-License-Identifier: Apache-2.0
"""``make demo``: what hcalld does, shown by guests that know nothing of it.

Everything is real: QEMU with the patch series, the daemon as users run it, Linux, and where
``/dev/kvm`` can be used Debian's own QEMU for x86 guests. ``make`` has
built and fetched what is needed; the acts run it, and stop where it is not as they say.

=====================  =========================================================
:mod:`.keystore`       a bare-metal guest, then a stock Debian kernel, get a keystore
:mod:`.secure`         Linux becomes a secure VM, and an altered one does not
:mod:`.sev`            a SEV guest gets its owner's secret, and an altered one does not
=====================  =========================================================
"""
