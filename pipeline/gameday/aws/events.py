# SPDX-License-Identifier: Apache-2.0
"""Events carry the account they come from; moto leaves it out.

Source: EventBridge User Guide, "Event structure".
"""

from __future__ import annotations

from moto.events.utils import EventTemplateParser


def install() -> None:
    """Put it into what a target gets."""
    plain = EventTemplateParser.DEFAULT_EVENT_INPUT_TEMPLATE
    EventTemplateParser.DEFAULT_EVENT_INPUT_TEMPLATE = plain.replace(
        '"source":', '"account": "<account>", "source":'
    )
