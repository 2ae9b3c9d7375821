"""The child's side of the sandbox: build the walls, then run one program after another behind them.

Started as ``python -I -S -c "... from nemotron.sandbox.launcher import main; main()"`` with a socket as its standard
input, which no program is given. Lines of JSON: a setting comes in, ``{"ready": true}`` or ``{"error"}`` goes out, then
a result for every program. With a program may come the two ends of pipes to another one in another sandbox. Levels:

- ``namespaces``: own user, mount, process, network and IPC namespaces; the root is an empty file system with the
  interpreter read-only and one small writable folder. Landlock and seccomp on top where the kernel has them.
- ``landlock``: no namespaces. Landlock for files, seccomp for sockets, processes, signals, System V memory, file modes.
- ``weak``: resource limits and Python's audit hook, which code that means harm gets around.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import time
from base64 import b64decode
from typing import Any, NoReturn

from nemotron.sandbox import kernel
from nemotron.sandbox.removal import remove

NOBODY = 65534
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_RESULT_FD, _CHANNEL_FDS = 3, (4, 5)
_OUT_OF_THE_WAY = 16
_MIB = 1 << 20


class Control:
    """The socket to the sandbox's owner: lines of JSON, and file descriptors beside them."""

    def __init__(self) -> None:
        # Not inherited: a program's standard input is another one.
        self._socket = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY))
        self._rest = b""

    def fileno(self) -> int:
        """Hangs up when the owner closes the sandbox."""
        return self._socket.fileno()

    def take(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message, None at the end."""
        blocks, received = [self._rest], list[int]()
        while b"\n" not in blocks[-1]:
            block, fds, _, _ = socket.recv_fds(self._socket, 1 << 20, len(_CHANNEL_FDS))
            received += fds
            if not block:
                return None
            blocks.append(block)
        line, _, self._rest = b"".join(blocks).partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message, received

    def tell(self, message: dict[str, Any]) -> None:
        """Send one message."""
        # The owner may have gone; the next `take` finds that out.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")


def main() -> None:
    """Read the setting, build the walls, serve until there is nobody to serve."""
    control = Control()
    first = control.take()
    if first is None:
        return
    setting, _ = first
    try:
        # A process and not, as PR_SET_PDEATHSIG has it, the thread that started us.
        parent = os.pidfd_open(setting["parent"])
        if setting["level"] == "namespaces":
            around = os.open(os.path.dirname(setting["box"]), os.O_PATH | os.O_DIRECTORY)
            _leave_namespaces()
            child = os.fork()
            if child:
                _wait(child, parent, (around, os.path.basename(setting["box"])))
            os.close(around)
            # The first process of its namespace: when it ends, the kernel ends all others there.
            kernel.die_with_parent(signal.SIGKILL)
            setting["box"] = _build_root(setting)
        else:
            _try_landlock(setting)
            # What a program leaves behind becomes a child of ours, whatever session it has moved to.
            kernel.adopt_orphans()
        kernel.hide_memory()
        setting["launcher"] = os.getpid()
    except OSError as error:
        control.tell({"error": f"{error.strerror} ({error.errno})"})
        os._exit(0)
    control.tell({"ready": True})
    number = 0
    while (taken := control.take()) is not None:
        number += 1
        answer, folder = _run(setting, taken[0], (number, taken[1]), (parent, control.fileno()))
        control.tell(answer)
        # Told apart: how long it takes to clear up after a program says nothing about the program.
        if folder is not None:
            control.tell({"clean": _drop_folder(setting, folder)})
    if setting["level"] != "namespaces":
        remove(setting["box"])
    os._exit(0)


def _try_landlock(setting: dict[str, Any]) -> None:
    if setting["level"] == "landlock":
        version = min(setting["landlock"], kernel.landlock_version())
        if version < kernel.LEAST_LANDLOCK:
            raise OSError(38, f"Landlock ABI {kernel.LEAST_LANDLOCK} is needed, this kernel has {version}")
        if not kernel.seccomp_known():
            raise OSError(38, "the system calls of this machine are not known")


def _wait(child: int, parent: int, folder: tuple[int, str]) -> NoReturn:
    """Stay until the first process of the namespace ends, or end it when the parent has ended."""
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(parent, select.POLLIN)
    if any(fd == parent for fd, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # Always: a parent that is dying hangs up before it counts as dead, so the child may have ended first. The folder is
    # empty: what was written lay in a file system of the namespace. An owner that lives waits for us before it looks.
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder[1], dir_fd=folder[0])
    os._exit(0)


def _leave_namespaces() -> None:
    """New namespaces, with this user as their owner and, for root, with nobody beside it."""
    user, group = os.geteuid(), os.getegid()
    ready_read, ready_write = os.pipe()
    me = os.getpid()
    # The user namespace's maps have to be written from outside when they name a user that is not ours.
    helper = os.fork() if user == 0 else 0
    if user == 0 and helper == 0:
        os.close(ready_write)
        os.read(ready_read, 1)
        try:
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{me}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
        except OSError:
            os._exit(1)
        os._exit(0)
    new = kernel.NEWUSER | kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
    try:
        kernel.unshare(new)
    finally:
        os.close(ready_write)
        os.close(ready_read)
        failed = bool(helper) and os.waitpid(helper, 0)[1] != 0
    if failed:
        raise OSError(1, "the users of the namespace cannot be set")
    if user != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")


def _build_root(setting: dict[str, Any]) -> str:
    """An empty root with the system read-only and a small writable ``/box``; returns the latter."""
    root = setting["box"]
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", root, "tmpfs", safe, "size=1m,mode=755,nr_inodes=2000")
    for path in setting["readable"]:
        target = root + path
        if os.path.islink(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(path), target)
        elif os.path.isdir(path) and not os.path.ismount(target):
            os.makedirs(target, exist_ok=True)
            kernel.mount(path, target, "", kernel.MS_BIND | kernel.MS_REC)
            kernel.make_read_only(target, recursive=True)
        elif os.path.isfile(path):
            _bind_file(path, target)
            kernel.make_read_only(target, recursive=False)
    for path in _DEVICES:
        _bind_file(path, root + path)
    os.mkdir(f"{root}/box")
    if not os.path.lexists(f"{root}/tmp"):  # the interpreter may live there
        os.symlink("/box", f"{root}/tmp")
    kernel.enter_root(root)
    kernel.make_read_only("/", recursive=False)
    return "/box"


def _bind_file(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    _write(target, "")
    kernel.mount(source, target, "", kernel.MS_BIND)


def _run(
    setting: dict[str, Any], program: dict[str, Any], numbered: tuple[int, list[int]], owner: tuple[int, int]
) -> tuple[dict[str, Any], str | None]:
    """One program in a fresh folder: its exit, its output, and what it wrote to its result pipe; and the folder."""
    number, channel = numbered
    try:
        binary = {name: b64decode(text) for name, text in program["binary"].items()}
        folder = _new_folder(setting, number, {**program["files"], **binary})
        return _start(setting, program, (folder, channel), owner), folder
    except OSError as error:
        return {"status": "sandbox", "reason": f"{error.strerror} ({error.errno})"}, None
    finally:
        for fd in channel:
            os.close(fd)


def _start(
    setting: dict[str, Any], program: dict[str, Any], place: tuple[str, list[int]], owner: tuple[int, int]
) -> dict[str, Any]:
    stdin = os.memfd_create("stdin", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(stdin, "wb", closefd=False) as file:
        file.write(program["stdin"].encode("utf-8", "surrogatepass"))
    os.lseek(stdin, 0, os.SEEK_SET)
    fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    # The last closes itself when the program begins: whether it has begun is told where it cannot tell anything.
    (out, out_end), (result, result_end), (begun, begun_end) = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _become(setting, program, place, (stdin, out_end, result_end, begun_end))
    for fd in (stdin, out_end, result_end, begun_end):
        os.close(fd)
    said = b""
    while block := os.read(begun, 1 << 10):
        said += block
    os.close(begun)
    if said != b"+":
        _end_all(setting, child)
        os.close(out)
        os.close(result)
        return {
            "status": "sandbox",
            "reason": said.removeprefix(b"+").decode() or "a program was ended before it began",
        }
    return _watch(setting, child, (out, result, place[1]), owner)


def _new_folder(setting: dict[str, Any], number: int, files: dict[str, str | bytes]) -> str:
    """A folder that no program has seen; with namespaces a file system, which ends with all that is in it."""
    box: str = setting["box"]
    nobody = setting["level"] == "namespaces" and os.geteuid() == 0
    if setting["level"] == "namespaces":
        options = f"size={setting['limits']['file_mb']}m,mode=700,nr_inodes=4096"
        owner = f",uid={NOBODY},gid={NOBODY}" if nobody else ""
        kernel.mount("tmpfs", box, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options + owner)
    else:
        box = f"{box}/{number}"
        os.mkdir(box, 0o700)
    for name, text in files.items():
        path = box
        for part in name.split("/")[:-1]:
            path = f"{path}/{part}"
            if not os.path.isdir(path):
                os.mkdir(path, 0o755)
        _write(f"{box}/{name}", text)
        os.chmod(f"{box}/{name}", 0o644)
        if nobody:
            os.chown(f"{box}/{name}", NOBODY, NOBODY)
    return box


def _drop_folder(setting: dict[str, Any], folder: str) -> bool:
    """Whether nothing is left; where something is, nothing else shall run beside it."""
    try:
        if setting["level"] == "namespaces":
            kernel.unmount(folder)
        else:
            remove(folder)
    except OSError:
        return False
    return True


def _become(
    setting: dict[str, Any], program: dict[str, Any], place: tuple[str, list[int]], fds: tuple[int, int, int, int]
) -> NoReturn:
    """In the new process: put up the walls that concern it alone, and turn into the program. Never returns."""
    (box, channel), level = place, setting["level"]
    begun = fds[3]
    try:
        # First out of the way of the numbers that they get.
        stdin, out, result, begun, *channel = (
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for fd in (*fds, *channel)
        )
        nowhere = os.open("/dev/null", os.O_WRONLY)
        given = {0: stdin, 1: out, 2: nowhere, _RESULT_FD: result, **dict(zip(_CHANNEL_FDS, channel, strict=False))}
        for number, fd in given.items():
            os.dup2(fd, number)
        # All but the one that closes itself.
        os.closerange(len(given), begun)
        os.closerange(begun + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir(box)
        os.umask(0o077)
        # Root's program is nobody, alone; otherwise it shares its user with the two processes around it.
        others = 0 if os.geteuid() == 0 else 2
        if level != "landlock":
            os.setsid()
        if level == "namespaces" and os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        _set_limits(setting["limits"], others if level == "namespaces" else None)
        if level != "namespaces":
            kernel.die_with_parent(signal.SIGKILL)
            if os.getppid() != setting["launcher"]:
                os._exit(127)
        if level != "weak":
            kernel.give_up_privileges()
            if level == "landlock" or kernel.landlock_version():
                readable = ["/"] if level == "namespaces" else setting["readable"]
                kernel.landlock([*readable, *_DEVICES[1:]], [box, "/dev/null"], newest=setting["landlock"])
            if level == "landlock" or kernel.seccomp_known():
                kernel.seccomp(in_the_open=level == "landlock")
        environment = {"PATH": "/usr/bin:/bin", "HOME": box, "TMPDIR": box, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        os.write(begun, b"+")
        os.execve(setting["python"][0], [*setting["python"], *program["argv"]], environment)
    except OSError as error:
        os.write(begun, f"{error.strerror} ({error.errno})".encode())
    finally:
        os._exit(127)


def _set_limits(limits: dict[str, Any], others: int | None) -> None:
    memory, file_size = limits["memory_mb"] * _MIB, limits["file_mb"] * _MIB
    chosen = {
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_CPU: (limits["cpu_s"], limits["cpu_s"] + 1),
        resource.RLIMIT_FSIZE: (file_size, file_size),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
    }
    if others is not None:  # without a namespace of its own it would count all processes of the user
        chosen[resource.RLIMIT_NPROC] = (limits["max_processes"] + others,) * 2
    for kind, (soft, hard) in chosen.items():
        _, highest = resource.getrlimit(kind)
        if highest != resource.RLIM_INFINITY:
            soft, hard = min(soft, highest), min(hard, highest)
        resource.setrlimit(kind, (soft, hard))


def _watch(
    setting: dict[str, Any], child: int, pipes: tuple[int, int, list[int]], owner: tuple[int, int]
) -> dict[str, Any]:
    """Collect output until the program ends or breaks a limit; then end everything that it started.

    It also ends when the program at the other side of its channel has ended: nobody asks it any more.
    """
    limits, (out, result, channel) = setting["limits"], pipes
    most = {out: limits["output_mb"] * _MIB, result: limits["output_mb"] * _MIB}
    taken: dict[int, list[bytes]] = {out: [], result: []}
    ended, broken = os.pidfd_open(child), None
    deadline = time.monotonic() + limits["wall_s"]
    poll = select.poll()
    for fd in (ended, out, result, owner[0]):
        poll.register(fd, select.POLLIN)
    for fd in (owner[1], *channel[:1]):
        poll.register(fd, 0)  # nothing but that the other end is closed
    while broken is None:
        ready = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if not ready or time.monotonic() > deadline or ready & set(owner):
            broken = "timeout"
        for fd in ready & {out, result}:
            if not _take(fd, taken[fd], most):
                poll.unregister(fd)
        if any(left < 0 for left in most.values()):
            broken = "output"
        elif ready == {ended} or ready & set(channel):
            break
    status = _end_all(setting, child)
    os.close(ended)
    for fd in (out, result):
        # Nothing blocks here, even if a process holds the other end that could not be ended.
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while most[fd] >= 0 and _take(fd, taken[fd], most):
                continue
        os.close(fd)
    if any(left < 0 for left in most.values()):
        broken = broken or "output"
    code = os.waitstatus_to_exitcode(status)
    stdout, told = (b"".join(taken[fd]).decode("utf-8", "replace") for fd in (out, result))
    return {
        "status": broken or "exited",
        "code": code,
        "stdout": "" if broken else stdout,
        "result": told,
    }


def _take(fd: int, blocks: list[bytes], most: dict[int, int]) -> bool:
    block = os.read(fd, 1 << 16)
    most[fd] -= len(block)
    if most[fd] >= 0:
        blocks.append(block)
    return bool(block)


def _end_all(setting: dict[str, Any], child: int) -> int:
    """Kill the program and all that it left behind; its wait status."""
    if setting["level"] == "namespaces":
        os.kill(-1, signal.SIGKILL)
    else:
        os.kill(child, signal.SIGKILL)
    status = 0
    while True:
        if setting["level"] == "weak":
            _kill_children()
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == child:
            status = ended


def _kill_children() -> None:
    """Kill all processes whose parent this one is, or has become."""
    me = str(os.getpid()).encode()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{entry}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[1] == me:
                    os.kill(int(entry), signal.SIGKILL)


def _write(path: str, content: str | bytes) -> None:
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
