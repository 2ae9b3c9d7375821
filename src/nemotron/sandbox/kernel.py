"""System calls that contain a process and that Python's library lacks: namespaces, mounts, Landlock, seccomp.

Numbers and structures are those of the kernel's headers (``unistd.h``, ``linux/landlock.h``, ``linux/seccomp.h``,
``linux/filter.h``, ``linux/prctl.h``); x86-64 and arm64. Every function raises `OSError` when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_ANY_NEW = 0x7E020080
_CLONE_THREAD = 0x10000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP, _SET_SECUREBITS, _NO_NEW_PRIVS = 1, 4, 22, 24, 28, 38
_SET_CHILD_SUBREAPER = 36

# Calls that have no place in a unit test: (x86-64, arm64), None where the architecture lacks it.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # Memory that RLIMIT_AS does not see.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # Those of other processes need no ``get``: their numbers can be guessed.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
}
# Further calls where there are no namespaces: what reaches other processes and the owner's files.
_DENIED_IN_THE_OPEN: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
}
_CLONE, _CLONE3, _KILL, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261)
_IOCTL, _FCNTL, _PRCTL = (16, 29), (72, 25), (157, 167)
# Of what can be done to an open file in the open: nothing that stays with the file (its flags are its owner's to set,
# on a file that is only open for reading too), and nobody named who is sent a signal or kept waiting.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)
"""F_DUPFD, F_[GS]ETFD, F_[GS]ETFL, locks, locks of open files, F_DUPFD_CLOEXEC, pipe sizes, seals."""
LEAST_LANDLOCK = 3
"""ABI version from which Landlock alone keeps files from being truncated (Linux 6.2)."""
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def unshare(flags: int) -> None:
    """Leave namespaces of the parent."""
    _check(_LIBC.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """``mount(2)``."""
    _check(_LIBC.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()))


def make_read_only(path: str, *, recursive: bool) -> None:
    """No writes, set-uid bits or (where ``recursive``) devices below a mount point. Linux 5.12."""
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | (MS_NODEV if recursive else 0), 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _syscall(442, _AT_FDCWD, path.encode(), flags, attributes, len(attributes))


def enter_root(path: str) -> None:
    """Make the mount point ``path`` the root and let go of the old one."""
    os.chdir(path)
    number = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine)
    if number is None:
        raise OSError(38, "pivot_root has no known number here")
    _syscall(number, b".", b".")
    _check(_LIBC.umount2(b".", ctypes.c_int(_MNT_DETACH)))
    os.chdir("/")


def unmount(path: str) -> None:
    """Take what is mounted at ``path`` away."""
    _check(_LIBC.umount2(path.encode(), ctypes.c_int(_MNT_DETACH)))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal: int) -> None:
    """Get ``signal`` when the parent ends."""
    _prctl(_SET_PDEATHSIG, signal)


def hide_memory() -> None:
    """Let no process of the same user look into this one."""
    _prctl(_SET_DUMPABLE, 0)


def give_up_privileges() -> None:
    """No capability now or after any ``exec``. The user id stays."""
    _prctl(_NO_NEW_PRIVS, 1)
    if os.geteuid() == 0:
        for capability in range(64):
            if _LIBC.prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                break
        # SECBIT_NOROOT and its lock: user id 0 is a user like any other.
        _prctl(_SET_SECUREBITS, 3)
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_LIBC.capset(header, struct.pack("6I", *[0] * 6)))


def landlock_version() -> int:
    """ABI version of Landlock, 0 without it."""
    return max(0, int(_LIBC.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def landlock(readable: Iterable[str], writable: Iterable[str], *, newest: int = 99) -> None:
    """Let this process read (and execute) below ``readable``, do anything below ``writable``, and nothing elsewhere.

    Also no TCP (ABI 4), no signals and no abstract sockets to the outside (ABI 6). ``newest`` is the latest ABI version
    that is asked for, so that what an older kernel gives can be tried on a newer one.
    """
    version = min(newest, landlock_version())
    if version == 0:
        raise OSError(38, "this kernel has no Landlock")
    rights = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        rights |= (1 << bit) if version >= since else 0
    attributes = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _syscall(444, attributes, size, 0)
    read = 1 | 1 << 2 | 1 << 3
    for paths, allowed in ((readable, read), (writable, rights)):
        for path in paths:
            _allow(ruleset, path, allowed)
    _prctl(_NO_NEW_PRIVS, 1)
    _syscall(446, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
    rule = struct.pack("=Qi", rights, place)
    _syscall(445, ruleset, 1, rule, 0)
    os.close(place)


def seccomp_known() -> bool:
    """Whether `seccomp` knows this machine's system calls."""
    return os.uname().machine in _ARCHITECTURES


def seccomp(*, in_the_open: bool) -> None:
    """Refuse calls for sockets, tracing, mounting, hidden memory ...; from here on, for this process and its children.

    ``in_the_open``: there are no namespaces, so refuse also new processes, signals to and limits of others, changes
    of owners, modes, flags and times, and outliving the process that started this one.
    """
    column, architecture = _ARCHITECTURES[os.uname().machine]
    denied = [*_DENIED.values(), *(_DENIED_IN_THE_OPEN.values() if in_the_open else ())]
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), _KILL_PROCESS, (0x20, 0, 0, 0)]
    if column == 0:  # the x32 calls have numbers of their own
        program += [(0x35, 0, 1, 0x40000000), _KILL_PROCESS]
    for numbers in denied:
        number = numbers[column]
        if number is not None:
            program += [(0x15, 0, 1, number), _EPERM]
    # The arguments of clone3 cannot be looked at; without it the C library uses clone.
    program += [(0x15, 0, 1, _CLONE3[column]), (0x06, 0, 0, 0x50000 | 38)]
    clone = [(0x45, 0, 1, _ANY_NEW), _EPERM]
    if in_the_open:
        clone += [(0x45, 1, 0, _CLONE_THREAD), _EPERM]
    program += _when(_CLONE[column], [*clone, _ALLOW])
    own = os.getpid()
    program += _when(_PRLIMIT[column], [(0x15, 1, 0, 0), (0x15, 0, 1, own), _ALLOW, _EPERM])
    if in_the_open:
        for numbers in (_KILL, _TGKILL):
            program += _when(numbers[column], [(0x15, 0, 1, own), _ALLOW, _EPERM])
        program += _when(_PRCTL[column], [(0x15, 0, 1, _SET_PDEATHSIG), _EPERM, _ALLOW])
        for numbers, allowed in ((_IOCTL, _IOCTLS), (_FCNTL, _FCNTLS)):
            body = [line for value in allowed for line in ((0x15, 0, 1, value), _ALLOW)]
            program += _when(numbers[column], [*body, _EPERM], argument=1)
    _install([*program, _ALLOW])


Instruction = tuple[int, int, int, int]
"""``struct sock_filter``: code, jump if true, jump if false, operand."""
_ALLOW: Instruction = (0x06, 0, 0, 0x7FFF0000)
_EPERM: Instruction = (0x06, 0, 0, 0x50000 | 1)
_KILL_PROCESS: Instruction = (0x06, 0, 0, 0x80000000)


def _when(number: int, body: Sequence[Instruction], *, argument: int = 0) -> list[Instruction]:
    """Run ``body``, which returns, on an argument (its lower half) of the call ``number``."""
    return [(0x15, 0, len(body) + 1, number), (0x20, 0, 0, 16 + 8 * argument), *body]


def _install(program: Sequence[Instruction]) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _prctl(_NO_NEW_PRIVS, 1)
    _check(_LIBC.prctl(_SET_SECCOMP, ctypes.c_ulong(2), filter_program, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(_LIBC.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero))


def _syscall(number: int, *arguments: int | bytes) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _check(_LIBC.syscall(ctypes.c_long(number), *converted))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
