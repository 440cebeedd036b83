# SPDX-License-Identifier: Apache-2.0
"""Claims a part outside of its folder."""


def main(channel):
    channel.send("part", table="files", name="../../etc/passwd", rows=1)
