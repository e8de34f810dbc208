# SPDX-License-Identifier: Apache-2.0
"""Files of rules."""

from __future__ import annotations

import pathlib
from typing import Final

from hcalld.core.errors import ConfigError
from hcalld.faults.engine import Faults, load

MAX_FILE_SIZE: Final = 1 << 20
"""Bytes; far more than the rules that may be in force take."""


def read(path: pathlib.Path) -> Faults:
    """The rules of a file, in force.

    Raises:
        ConfigError: it cannot be read, is malformed, or has a rule that could never be met.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
        if len(data) > MAX_FILE_SIZE:
            raise ConfigError(f"{path}: more than {MAX_FILE_SIZE} bytes; expected rules of faults")
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no UTF-8 at byte {error.start}; expected TOML") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; expected a TOML file with rules of faults"
        ) from None
    return load(text, str(path))
