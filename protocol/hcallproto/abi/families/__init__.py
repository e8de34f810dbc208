# SPDX-License-Identifier: Apache-2.0
"""One data file a family; ``hcallproto.abi.registry`` lists them."""
