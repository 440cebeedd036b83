# SPDX-License-Identifier: Apache-2.0
"""What every source has in common that holds something open."""

from __future__ import annotations

from typing import Self


class Closing:
    """What a source has open is closed by `close`, or at the end of `with`; then it reads no more.

    Closing twice does nothing.
    """

    def close(self) -> None:
        """Close what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
