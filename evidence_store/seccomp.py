# SPDX-License-Identifier: Apache-2.0
"""Refuse this process and all it starts new sockets, for good; those that are open keep working.

Namespaces do not rule sockets that lie in the file system, nor does Landlock before ABI 9: a
session bus or a container engine behind one would act for whoever connects.

Source: seccomp(2); include/uapi/linux/{seccomp,filter,audit}.h; the kernel's system call tables.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # 1: EPERM
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data
_X32 = 0x40000000

# io_uring can do what the other three do, unseen by the filter.
_IO_URING_SETUP = 425
# Machine: its AUDIT_ARCH; socket, socketpair, connect.
_MACHINES = {
    "x86_64": (0xC000003E, (41, 53, 42)),
    "aarch64": (0xC00000B7, (198, 199, 203)),
}


def refuse_sockets() -> str:
    """Refuse socket, socketpair, connect and io_uring with EPERM; return "" or why it cannot be.

    The process must have set no_new_privs. A call by another architecture's table kills it.
    """
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        return f"no filter of system calls for this {platform.machine()}"
    architecture, sockets = _MACHINES[platform.machine()]
    numbers = (*sockets, _IO_URING_SETUP)
    # (operation, jumps if true, jumps if false, value); jumps are counted from the next line.
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
        *((_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog, with the padding of this machine.
    argument = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, argument, 0, 0):
        return f"no filter of system calls ({os.strerror(ctypes.get_errno())})"
    return ""
