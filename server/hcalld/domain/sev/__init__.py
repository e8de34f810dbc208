# SPDX-License-Identifier: Apache-2.0
"""The emulated AMD Secure Processor: a platform, and the guests that it keeps.

Two models. ``platform.py`` is what all connections share: keys and certificates, ownership,
handles, ASIDs. ``vm.py`` is what one connection has: a VM, and its guest's keys and digest. A
handler sees the platform only as the bytes of ``view.py``, and changes it only by the bytes of
``changes.py``, so that what a connection did can be run again without the others.

Sources: AMD publication 55766 (SEV API), and the kernel's driver, where it comes first: Linux
7.2 ``arch/x86/kvm/svm/sev.c`` and ``drivers/crypto/ccp/sev-dev.c``. ``settings.py`` has every
number that neither gives, in one place.
"""
