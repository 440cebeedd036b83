# SPDX-License-Identifier: Apache-2.0
"""A snapshot as the objects of an item: what a limited child asks for is fetched, nothing else.

    objects = BlockObjects(image)                                    # acquisition.blocks
    Child(…, items={"snapshot": (image.size, BLOCK_BYTES, objects)})  # evidence_store.child

One object is one block of 512 KiB, named by its number in hex. A block that is not listed is not
stored: zeros. One that is lost raises `UnreadableError`: never zeros.
"""

from __future__ import annotations

import fcntl
import os

from acquisition.blocks import SnapshotFile, SnapshotImage
from acquisition.ebs import BLOCK_BYTES
from evidence_store.transfer import UnreadableError

PAGE_BLOCKS = 1000
"""Blocks of a page of the list: 100 KB or so, and 500 MiB of a full disk."""

_CACHE_BYTES = 64 << 20
_MOST_AHEAD = 16  # blocks fetched at once where reading goes on in order
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class BlockObjects:
    """Blocks of a snapshot for `evidence_store.child`. Not for use by several threads at once.

    Blocks that follow one another are fetched 2, 4, 8 and then 16 at once, so that a large file
    does not wait for each block, and a small one costs no more than its own.
    """

    def __init__(self, image: SnapshotImage, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._file = SnapshotFile(image, cache_bytes=cache_bytes, readahead=0)
        self._window = min(_MOST_AHEAD, max(1, cache_bytes // BLOCK_BYTES // 2))
        self._image = image
        self._next = -1
        self._run = 0
        self._loaded = 0  # first block after those fetched ahead

    def open_object(self, name: str) -> int | None:
        """Return a descriptor of a sealed memfd with a block, None if the block is not listed.

        Raises: UnreadableError; ServiceError, AcquisitionError; ValueError for no number.
        """
        index = int(name, 16)
        follows, self._next = index == self._next, index + 1
        if not follows:
            self._run, self._loaded = 1, 0
        if not self._image.listing.between(index, index + 1):
            return None
        if index >= self._loaded:
            self._run = min(self._run * 2, self._window) if follows else 1
            self._loaded = index + self._run
            if self._run > 1:
                self._ahead(index)
        block = self._file.pread(BLOCK_BYTES, index * BLOCK_BYTES)
        fd = os.memfd_create("block", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _ahead(self, index: int) -> None:
        try:
            self._file.pread(self._run * BLOCK_BYTES, index * BLOCK_BYTES)
        except UnreadableError:
            self._run = 1  # which of them it is shows where it is asked for
