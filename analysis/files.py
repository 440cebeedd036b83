# SPDX-License-Identifier: Apache-2.0
"""The job `files`: every entry of every file system of a disk image. Runs in a limited child."""

from __future__ import annotations

from analysis.output import ParquetSink
from analysis.walk import walk_image
from evidence_store.child import Channel


def main(channel: Channel) -> None:
    """Walk the image that the request names; send parts, coverage and progress."""
    item = channel.request["item"]
    sink = ParquetSink(channel)
    with channel.image(item) as image:
        walk_image(image, item=item, item_digest=channel.request["item_digest"], sink=sink)
    sink.close()
