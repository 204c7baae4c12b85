"""What holds a program that nobody has read: limits of the Linux kernel, on this process and for good.

`confine` needs no privilege. Landlock leaves the interpreter's library to be read and one folder to be written; a
seccomp filter takes away new processes, sockets, signals to others and what could undo the rest; resource limits bound
memory, time and files. `leave_network` is a second wall where the machine allows a namespace. Standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

# Landlock: the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # number of bits by ABI; 16 from 5 on
_FILE_ONLY = 0b1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # what a rule on a file may allow
_READABLE = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_THREAD = 0x10000
_CAPABILITIES_3 = 0x20080522
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_EVERYWHERE = (424, 425, 434, 438)  # pidfd_send_signal, io_uring_setup, pidfd_open, pidfd_getfd


@dataclass(frozen=True)
class _Architecture:
    audit: int
    clone: int
    denied: tuple[int, ...]


# fork, vfork, execve, execveat, socket, socketpair, kill, tkill, tgkill, ptrace, process_vm_*, bpf, perf_event_open,
# userfaultfd, add_key, request_key, keyctl, unshare, setns, mount, pivot_root, chroot, shmget, msgget, semget, mq_open,
# setrlimit, prlimit64
_ARCHITECTURES = {
    "x86_64": _Architecture(
        0xC000003E,
        56,
        (57, 58, 59, 322, 41, 53, 62, 200, 234, 101, 310, 311, 321, 298, 323, 248, 249, 250)
        + (272, 308, 165, 155, 161, 29, 68, 64, 240, 160, 302),
    ),
    "aarch64": _Architecture(
        0xC00000B7,
        220,
        (221, 281, 198, 199, 129, 130, 131, 117, 270, 271, 280, 241, 282, 217, 218, 219)
        + (97, 268, 40, 41, 51, 194, 186, 190, 180, 164, 261),
    ),
}
_CLONE3 = 435


@dataclass(frozen=True)
class Limits:
    """Of one program."""

    seconds: int  # of processor time
    memory: int  # bytes of address space
    file: int  # bytes of any one file


def missing() -> list[str]:
    """What this machine cannot hold: of `files`, `processes and network`."""
    lacks = []
    if sys.platform != "linux":
        return ["files", "processes and network"]
    if _landlock_abi() < 1:
        lacks.append("files")
    if platform.machine() not in _ARCHITECTURES:
        lacks.append("processes and network")
    return lacks


def leave_network() -> bool:
    """Move this process into a network of its own, with nothing in it; whether the machine allows it."""
    user, group = os.geteuid(), os.getegid()
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET | os.CLONE_NEWIPC)
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(line)
    except (OSError, AttributeError):
        return False
    return True


def confine(folder: str, limits: Limits) -> None:
    """Give up everything but computing, reading Python's library, and writing in `folder`.

    What the machine cannot hold (`missing`) is passed over.

    Raises:
        OSError: The kernel refused a limit that it has.
    """
    libc = _libc()
    _check(libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0))
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for what, value in (
        (resource.RLIMIT_CPU, limits.seconds),
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))
    if _landlock_abi() >= 1:
        _restrict_files(libc, folder)
    header, nothing = struct.pack("=Ii", _CAPABILITIES_3, 0), bytes(24)
    _check(libc.capset(header, nothing))  # root's power over limits and other users' files
    if platform.machine() in _ARCHITECTURES:
        _filter_calls(libc)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _landlock_abi() -> int:
    return int(_libc().syscall(_CREATE_RULESET, None, 0, 1))


def _restrict_files(libc: ctypes.CDLL, folder: str) -> None:
    abi = _landlock_abi()
    everything = (1 << _FILE_RIGHTS.get(abi, 16)) - 1
    scopes = 0b11 if abi >= 6 else 0  # abstract sockets, signals
    attributes = struct.pack("=QQQ", everything, 0b11 if abi >= 4 else 0, scopes)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = _check(libc.syscall(_CREATE_RULESET, attributes, size, 0))
    for path, rights in _allowed(folder, everything):
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this machine
        if not os.path.isdir(path):
            rights &= _FILE_ONLY
        _check(libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights & everything, place), 0))
        os.close(place)
    _check(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _allowed(folder: str, everything: int) -> Iterator[tuple[str, int]]:
    read = _READ_FILE | _READ_DIR
    library = os.path.dirname(os.__file__)
    for path in (library, os.path.join(sys.base_prefix, "lib"), *_READABLE):
        yield os.path.realpath(path), read | _EXECUTE
    for path in _DEVICES:
        yield path, _READ_FILE | 1 << 1
    yield "/dev/stdin", _READ_FILE
    yield folder, everything & ~(1 << 6 | 1 << 11 | _EXECUTE)  # no devices


def _filter_calls(libc: ctypes.CDLL) -> None:
    here = _ARCHITECTURES[platform.machine()]
    refuse = _ERRNO | errno.EPERM
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, here.audit), (_RETURN, 0, 0, _KILL)]
    program += [(_LOAD, 0, 0, _NUMBER)]
    if platform.machine() == "x86_64":  # the 32-bit-pointer calls, which have other numbers
        program += [(_JUMP_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, refuse)]
    for number in (*here.denied, *_EVERYWHERE):
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    program += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]  # the library falls back to clone
    program += [(_JUMP_EQUAL, 0, 3, here.clone), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    program += [(_JUMP_SET, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0))
