# SPDX-License-Identifier: Apache-2.0
"""What is shown of partitions and objects, to people and to scripts. No data are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hcalld.domain.keystore import Keystore, NamedObject


def shown_label(item: NamedObject) -> str:
    """An object's label for people."""
    return shown_bytes(item.consumer, item.label)


def shown_bytes(consumer: int, label: bytes) -> str:
    """A label for people; nothing in it steers a terminal."""
    from hcalld.domain.labels import split_os_label
    from hcallproto.payloads.pks import Consumer, describe_label
    from hcallproto.payloads.quoting import quote

    if consumer != Consumer.OS or split_os_label(label) is None:
        return quote(label)
    return describe_label(label)


def policy_names(policy: int) -> list[str]:
    """The bits of a policy."""
    from hcallproto.payloads.pks import Policy

    return [bit.name or "" for bit in Policy if policy & bit]


def shown_policy(policy: int) -> str:
    """A policy for people."""
    return " ".join(policy_names(policy)) or "-"


def object_fields(item: NamedObject) -> dict[str, Any]:
    """An object for scripts."""
    return {
        "consumer": item.consumer.name.lower(),
        "label": shown_label(item),
        "label_hex": item.label.hex(),
        "bytes": len(item.stored.data),
        "policy": policy_names(item.stored.policy),
    }


def objects_table(keystore: Keystore) -> Any:
    """All objects for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table("consumer", "label", "bytes", "policy", box=None, pad_edge=False)
    for item in keystore.objects():
        table.add_row(
            item.consumer.name.lower(),
            Text(shown_label(item)),
            str(len(item.stored.data)),
            shown_policy(item.stored.policy),
        )
    return table


def print_table(renderable: Any) -> None:
    """Print a table as wide as it is."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(renderable)


def print_json(value: Any) -> None:
    """Print a value for scripts."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))
