"""The child's side of the sandbox: build the walls, then run one program after another behind them.

Started as ``python -I -S -c "... from nemotron.sandbox.launcher import main; main()"``. Lines of JSON: a setting comes
in, ``{"ready": true}`` or ``{"error"}`` goes out, then a result for every program. Levels:

- ``namespaces``: own user, mount, process, network and IPC namespaces; the root is an empty file system with the
  interpreter read-only and one small writable folder. Landlock and seccomp on top where the kernel has them.
- ``landlock``: no namespaces. Landlock for files, seccomp for sockets, processes, signals and file modes.
- ``weak``: resource limits and Python's audit hook, which code that means harm gets around.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from typing import Any, NoReturn

from nemotron.sandbox import kernel

NOBODY = 65534
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_RESULT_FD = 3
_MIB = 1 << 20


def main() -> None:
    """Read the setting, build the walls, serve until stdin ends."""
    setting = json.loads(sys.stdin.readline())
    try:
        # A process and not, as PR_SET_PDEATHSIG has it, the thread that started us.
        parent = os.pidfd_open(setting["parent"])
        if setting["level"] == "namespaces":
            _leave_namespaces()
            child = os.fork()
            if child:
                _wait(child, parent)
            # The first process of its namespace: when it ends, the kernel ends all others there.
            kernel.die_with_parent(signal.SIGKILL)
            setting["box"] = _build_root(setting)
        kernel.hide_memory()
    except OSError as error:
        _tell({"error": f"{error.strerror} ({error.errno})"})
        os._exit(0)
    _tell({"ready": True})
    for line in sys.stdin:
        _tell(_run(setting, json.loads(line), parent))
    os._exit(0)


def _wait(child: int, parent: int) -> NoReturn:
    """Stay until the first process of the namespace ends, or end it when the parent has ended."""
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(parent, select.POLLIN)
    if any(fd == parent for fd, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
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
    root, limits = setting["box"], setting["limits"]
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
    kernel.mount("tmpfs", f"{root}/box", "tmpfs", safe, f"size={limits['file_mb']}m,mode=700,nr_inodes=4096")
    if not os.path.lexists(f"{root}/tmp"):  # the interpreter may live there
        os.symlink("/box", f"{root}/tmp")
    kernel.enter_root(root)
    kernel.make_read_only("/", recursive=False)
    return "/box"


def _bind_file(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    _write(target, "")
    kernel.mount(source, target, "", kernel.MS_BIND)


def _run(setting: dict[str, Any], program: dict[str, Any], parent: int) -> dict[str, Any]:
    """One program in a fresh folder: its exit, its output, and what it wrote to its result pipe."""
    _fill_box(setting, program["files"])
    stdin = os.memfd_create("stdin", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(stdin, "wb", closefd=False) as file:
        file.write(program["stdin"].encode("utf-8", "surrogatepass"))
    os.lseek(stdin, 0, os.SEEK_SET)
    fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    (out, out_end), (result, result_end) = os.pipe(), os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        return {"status": "sandbox", "reason": f"cannot start a process: {error.strerror}"}
    if child == 0:
        _become(setting, program, (stdin, out_end, result_end))
    for fd in (stdin, out_end, result_end):
        os.close(fd)
    return _watch(setting, child, (out, result), parent)


def _fill_box(setting: dict[str, Any], files: dict[str, str]) -> None:
    box = setting["box"]
    for entry in os.scandir(box):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
    for name, text in files.items():
        _write(f"{box}/{name}", text)
    if setting["level"] == "namespaces" and os.geteuid() == 0:
        for path in (box, *(f"{box}/{name}" for name in files)):
            os.chown(path, NOBODY, NOBODY)


def _become(setting: dict[str, Any], program: dict[str, Any], fds: tuple[int, int, int]) -> NoReturn:
    """In the new process: put up the walls that concern it alone, and turn into the program. Never returns."""
    box, level = setting["box"], setting["level"]
    try:
        stdin, out, result = fds
        # First out of the way of the numbers that they get.
        stdin, out, result = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (stdin, out, result))
        nowhere = os.open("/dev/null", os.O_WRONLY)
        for fd, number in ((stdin, 0), (out, 1), (nowhere, 2), (result, _RESULT_FD)):
            os.dup2(fd, number)
        os.closerange(_RESULT_FD + 1, 4096)
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
        if level != "weak":
            kernel.give_up_privileges()
            if level == "landlock" or kernel.landlock_version():
                readable = ["/"] if level == "namespaces" else setting["readable"]
                kernel.landlock([*readable, *_DEVICES[1:]], [box, "/dev/null"])
            if level == "landlock" or kernel.seccomp_known():
                kernel.seccomp(in_the_open=level == "landlock")
        environment = {"PATH": "/usr/bin:/bin", "HOME": box, "TMPDIR": box, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        os.execve(setting["python"][0], [*setting["python"], *program["argv"]], environment)
    except OSError as error:
        os.write(_RESULT_FD, json.dumps({"sandbox": f"{error.strerror} ({error.errno})"}).encode())
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


def _watch(setting: dict[str, Any], child: int, pipes: tuple[int, int], parent: int) -> dict[str, Any]:
    """Collect output until the program ends or breaks a limit; then end everything that it started."""
    limits, (out, result) = setting["limits"], pipes
    most = {out: limits["output_mb"] * _MIB, result: limits["output_mb"] * _MIB}
    taken: dict[int, list[bytes]] = {out: [], result: []}
    ended, broken = os.pidfd_open(child), None
    deadline = time.monotonic() + limits["wall_s"]
    poll = select.poll()
    for fd in (ended, out, result, parent):
        poll.register(fd, select.POLLIN)
    while broken is None:
        ready = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if not ready or time.monotonic() > deadline or parent in ready:
            broken = "timeout"
        for fd in ready & {out, result}:
            if not _take(fd, taken[fd], most):
                poll.unregister(fd)
        if any(left < 0 for left in most.values()):
            broken = "output"
        elif ready == {ended}:
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
    return {"status": broken or "exited", "code": code, "stdout": "" if broken else stdout, "result": told}


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
    if setting["level"] == "weak":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    status = 0
    while True:
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == child:
            status = ended


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
