# SPDX-License-Identifier: Apache-2.0
"""Work for a pool, a few pieces ahead of who takes the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

_A = TypeVar("_A")
_R = TypeVar("_R")

AHEAD = 64


def in_order(
    pool: Executor, work: Callable[[_A], _R], things: Iterable[_A], ahead: int = AHEAD
) -> Iterator[_R]:
    """Yield `work` of each thing, in order, as `Executor.map` does, but no more than `ahead` early.

    `Executor.map` submits everything at once: of an image of 16 TiB, 262,144 futures are held.
    What has not begun is cancelled when the caller stops taking, or when `work` raises.
    """
    running: deque[Future[_R]] = deque()
    try:
        for thing in things:
            running.append(pool.submit(work, thing))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
