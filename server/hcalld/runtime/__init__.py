# SPDX-License-Identifier: Apache-2.0
"""Where trio lives: sockets, sessions, effect drivers."""
