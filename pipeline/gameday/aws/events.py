# SPDX-License-Identifier: Apache-2.0
"""Events carry the account they come from, and a disabled rule sends none; in moto neither is so.

Source: EventBridge User Guide, "Event structure"; API Reference, DisableRule.
"""

from __future__ import annotations

from typing import Any

from moto.events.models import Rule
from moto.events.utils import EventTemplateParser


def install() -> None:
    """Put both into moto."""
    plain = EventTemplateParser.DEFAULT_EVENT_INPUT_TEMPLATE
    EventTemplateParser.DEFAULT_EVENT_INPUT_TEMPLATE = plain.replace(
        '"source":', '"account": "<account>", "source":'
    )
    send = Rule.send_to_targets

    def send_to_targets(self: Rule, *event: Any, **how: Any) -> None:
        if self.state != "DISABLED":
            send(self, *event, **how)

    Rule.send_to_targets = send_to_targets  # type: ignore[method-assign]
