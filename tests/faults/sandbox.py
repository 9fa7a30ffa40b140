# A seccomp filter that forbids system calls, as a container's sandbox does.
#
# A filter cannot be taken back, so it belongs into a test with `own_process`. This file knows
# nothing of the package.

from __future__ import annotations

import ctypes
import os
import platform
import struct

import pytest

# include/uapi/linux/prctl.h, seccomp.h, audit.h, bpf_common.h
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW = 0x7FFF_0000
_RET_ERRNO = 0x0005_0000
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_OFFSET_OF_NUMBER = 0
_OFFSET_OF_ARCHITECTURE = 4

# The audit architecture, and the numbers of the calls (arch/*/include/.../unistd.h).
_NUMBERS = {
    "x86_64": (0xC000_003E, {"recvmmsg": 299, "sendmmsg": 307, "sendmsg": 46, "recvmsg": 47}),
    "aarch64": (0xC000_00B7, {"recvmmsg": 243, "sendmmsg": 269, "sendmsg": 211, "recvmsg": 212}),
}


def forbid(code: int, *calls: str) -> None:
    """From now on these system calls fail with that errno, in this process and its children."""
    machine = platform.machine()
    if machine not in _NUMBERS:
        pytest.skip(f"the numbers of the system calls of {machine} are not known here")
    architecture, numbers = _NUMBERS[machine]
    forbidden = [numbers[call] for call in calls]

    def instruction(op: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", op, if_true, if_false, operand)

    n = len(forbidden)
    program = b"".join(
        [
            instruction(_LOAD_WORD, _OFFSET_OF_ARCHITECTURE),
            instruction(_JUMP_IF_EQUAL, architecture, 0, n + 1),
            instruction(_LOAD_WORD, _OFFSET_OF_NUMBER),
            *(instruction(_JUMP_IF_EQUAL, number, n - i) for i, number in enumerate(forbidden)),
            instruction(_RETURN, _RET_ALLOW),
            instruction(_RETURN, _RET_ERRNO | code),
        ]
    )
    code_buffer = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("@HP", len(program) // 8, ctypes.addressof(code_buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        pytest.skip(f"prctl: {os.strerror(ctypes.get_errno())}")
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_program, 0, 0) != 0:
        pytest.skip(f"seccomp: {os.strerror(ctypes.get_errno())}")
