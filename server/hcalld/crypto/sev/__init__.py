# SPDX-License-Identifier: Apache-2.0
"""What SEV's firmware computes: keys, certificates, sessions, measurements, packets, memory.

Formats are in ``hcallproto.payloads.sev``. Nothing here draws entropy, but for a root, whose
RSA keys OpenSSL makes: nonces and the entropy of keys are arguments.
"""
