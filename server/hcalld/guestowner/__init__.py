# SPDX-License-Identifier: Apache-2.0
"""The guest owner's side of SEV: what decides whether a platform and a launch are trusted.

A library without a command line; ``hcalld sev`` is that. It is what sevctl and sev-tool do:
certificates are fetched and verified, sessions made, launches measured beforehand, secrets
packed. Nothing here is of the daemon: it is the other party, which the platform must convince.
"""
