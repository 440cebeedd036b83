# SPDX-License-Identifier: Apache-2.0
"""A practice machine: Debian under QEMU, with an SSH server and an intruder's traces in its memory.

    image = guest_image()                    # made if it is not cached
    with Guest(image, folder) as guest:
        guest.port(22), guest.key, guest.host_key, guest.truth

Always emulated (`-accel tcg`), never virtualised: it runs wherever QEMU does. Nothing is installed,
no root is needed, and it reaches no network.
"""

from pipeline.gameday.guest.build import GuestError, Image, guest_image, missing_tools
from pipeline.gameday.guest.machine import Guest

__all__ = ["Guest", "GuestError", "Image", "guest_image", "missing_tools"]
