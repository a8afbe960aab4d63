"""The system calls that code in the sandbox may not make, as a classic BPF program.

Format: `struct sock_filter` of linux/filter.h; data is `struct seccomp_data` of linux/seccomp.h.
New processes, sockets, tracing, namespaces, mounts, keys, kernel modules and io_uring end the
process with SIGSYS, which is how an attempt is told from a mistake. Threads are allowed.
"""

from __future__ import annotations

import platform
import struct

from loomos.errors import InvalidInput

ALLOW = 0x7FFF0000
KILL = 0x80000000
NOT_IMPLEMENTED = 0x00050000 | 38
CLONE_THREAD = 0x10000

AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

KILLED = {
    "x86_64": {
        "fork": 57, "vfork": 58, "execveat": 322, "socket": 41, "connect": 42, "bind": 49,
        "listen": 50, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272,
        "setns": 308, "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "init_module": 175, "finit_module": 313,
        "delete_module": 176, "kexec_load": 246, "reboot": 169, "swapon": 167,
        "io_uring_setup": 425, "mknod": 133, "mknodat": 259, "personality": 135,
        "acct": 163, "settimeofday": 164,
    },
    "aarch64": {
        "execveat": 281, "socket": 198, "connect": 203, "bind": 200, "listen": 201, "ptrace": 117,
        "process_vm_readv": 270, "process_vm_writev": 271, "mount": 40, "umount2": 39,
        "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "keyctl": 219, "add_key": 217,
        "request_key": 218, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104,
        "reboot": 142, "swapon": 224, "io_uring_setup": 425, "mknodat": 33, "personality": 92,
        "acct": 89, "settimeofday": 170,
    },
}  # fmt: skip

X32 = 0x40000000
"""Numbers from here are those of x86-64's second interface, which would pass by the list."""

CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def program() -> bytes:
    """The filter for this machine.

    Raises:
        InvalidInput: there is none for its processor.
    """
    machine = platform.machine()
    if machine not in KILLED:
        raise InvalidInput(f"the sandbox knows no system calls of {machine}; use x86_64 or aarch64")
    code = [
        _step(LOAD, 4),
        _step(JUMP_EQUAL, AUDIT_ARCHITECTURE[machine], 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, 0),
        _step(JUMP_AT_LEAST, X32, 0, 1),
        _step(RETURN, KILL),
        # glibc falls back from clone3, whose flags a filter cannot read, to clone.
        _step(JUMP_EQUAL, CLONE3, 0, 1),
        _step(RETURN, NOT_IMPLEMENTED),
    ]
    for number in KILLED[machine].values():
        code += [_step(JUMP_EQUAL, number, 0, 1), _step(RETURN, KILL)]
    code += [
        _step(JUMP_EQUAL, CLONE[machine], 0, 3),
        _step(LOAD, 16),
        _step(JUMP_SET, CLONE_THREAD, 1, 0),
        _step(RETURN, KILL),
        _step(RETURN, ALLOW),
    ]
    return b"".join(code)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)
