# SPDX-License-Identifier: Apache-2.0
"""Disk images in containers: E01, qcow2, VMDK, VHD, VHDX.

What is stored is the disk inside. The formats are parsed in limited children
(`acquisition.container.reader`); this side opens the files, names them by rule and never by what a
container says, hashes them as they were received, and takes the bytes over through shared memory.
"""
