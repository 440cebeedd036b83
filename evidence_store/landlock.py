# SPDX-License-Identifier: Apache-2.0
"""Take file-system, TCP and IPC rights away from this process and all it starts, for good.

What Landlock does not rule: stat, chdir, access, readlink; chmod, chown, times and extended
attributes of what file permissions let the user change; descriptors that are open already.

Source: https://docs.kernel.org/userspace-api/landlock.html; include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_ASK_VERSION = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE, _IOCTL_DEV, _RESOLVE_UNIX = 1 << 14, 1 << 15, 1 << 16
_TRUNCATE_SINCE = 3
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

# Bits by the ABI version that brought them: rights on files, on TCP ports, scopes of IPC.
_FS = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEV, 9: _RESOLVE_UNIX}
_NET = {4: 0b11}  # bind and connect TCP
_SCOPES = {6: 0b11}  # abstract UNIX sockets; signals

_READ = _EXECUTE | _READ_FILE | _READ_DIR
_NOT_IN_OWN_FOLDER = _EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV


def restrict(readable: Iterable[str], own: str) -> str:
    """Leave this thread and all it will start only these rights.

    Args:
        readable: files and directories to read and execute, with all below; absent ones are left
            out.
        own: the one directory to read and write in; nothing in it can be executed.

    Returns: "own folder only", with what an old kernel leaves open; else why nothing was taken.

    Raises: OSError if the kernel offers Landlock and refuses our rules.
    """
    try:
        abi = _call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError as e:
        return f"not limited: no Landlock ({e.strerror})"
    handled = _upto(_FS, abi)
    attributes = struct.pack("=QQQ", handled, _upto(_NET, abi), _upto(_SCOPES, abi))
    # A kernel that knows fewer fields takes ours as long as the rest is zero.
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _allow(ruleset, own, handled & ~_NOT_IN_OWN_FOLDER)
        for path in readable:
            try:
                _allow(ruleset, path, _READ)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # What cannot be opened by us cannot be read without the rule either.
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    if abi < _TRUNCATE_SINCE:
        return f"own folder only, but any file can be truncated (Landlock ABI {abi})"
    return "own folder only"


def _upto(bits: dict[int, int], abi: int) -> int:
    return sum(value for since, value in bits.items() if since <= abi)


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
