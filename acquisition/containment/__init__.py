# SPDX-License-Identifier: Apache-2.0
"""Isolation of an instance that can be undone.

    state   pure: what an instance was, what shall change, what may be undone, what is proved
    aws     the calls: observe, read and write one attribute at a time

Everything is an attribute: a name, and a value that can be read and written. To isolate is to write
other values, to prove is to read them again, to release is to write the old ones back wherever the
value is still ours.
"""
