# SPDX-License-Identifier: Apache-2.0
"""A second source against what was stored: the same bytes, the same holes, nothing unreadable."""

from __future__ import annotations

import threading

from evidence_store.digest import LinearDigest, SegmentList, segment_name
from evidence_store.transfer import BulkSource, ImageSource, Progress
from evidence_store.transfer.image import is_zero, read_runs


def differences(
    source: ImageSource,
    segments: SegmentList,
    *,
    progress: Progress = lambda _done, _total: None,
) -> list[str]:
    """Return in what `source` differs from the segments of an image item, in words.

    Reads every byte that the source does not call a hole; one segment in memory.
    """
    wrong = []
    stop = threading.Event()
    if source.size != segments.size:
        wrong.append(f"it has {source.size} bytes, the item {segments.size}")
    buffer = bytearray(segments.segment_size)
    holes = {i for first, count in segments.holes for i in range(first, first + count)}
    for index in range(segments.count):
        offset, length = index * segments.segment_size, segments.length(index)
        if source.next_data(offset) >= offset + length:
            if index not in holes:
                wrong.append(f"segment {index} is a hole there")
        else:
            view = memoryview(buffer)[:length]
            digest = LinearDigest()
            if isinstance(source, BulkSource):
                runs, gaps = source.fill(view, offset, stop)
                digest.sparse(view, runs)
            else:
                runs, gaps = read_runs(source, view, offset, digest)
            expected = segments.digests.get(segment_name(index))
            if gaps:
                wrong.append(f"segment {index} cannot be read whole: {gaps[0].error}")
            elif expected is None and not all(is_zero(view[a:b]) for a, b in runs):
                wrong.append(f"segment {index} is zero or unreadable in the item, not there")
            elif expected is not None and digest.results()["sha256"] != expected:
                wrong.append(f"segment {index} has SHA-256 {digest.results()['sha256']}")
        progress(min(offset + length, segments.size), segments.size)
    return wrong
