"""What untrusted code must not do, tried at both levels that hold."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.sandbox.box import Level, Limits, Outcome, Sandbox, SandboxError
from tests.unit.sandbox.sandbox_processes import processes_with

# On a busy machine a second of CPU may take many of wall clock; only what never ends meets the short limit.
LIMITS = Limits(cpu_s=1, wall_s=60.0, memory_mb=256, file_mb=4, output_mb=1, max_processes=8)
BRIEF = replace(LIMITS, wall_s=1.0)


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def level(request: pytest.FixtureRequest) -> Level:
    chosen: Level = request.param
    return chosen


@pytest.fixture(scope="module")
def box(level: Level) -> Iterator[Sandbox]:
    try:
        sandbox = Sandbox(level, LIMITS)
    except SandboxError as error:
        pytest.skip(f"no {level} here: {error}")
    with sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def brief(box: Sandbox) -> Iterator[Sandbox]:
    with Sandbox(box.level, BRIEF) as sandbox:
        yield sandbox


def run(box: Sandbox, code: str) -> Outcome:
    return box.run(["code.py"], {"code.py": textwrap.dedent(code)})


@pytest.fixture(autouse=True)
def _still_works(box: Sandbox) -> Iterator[None]:
    """Whatever a program did, the next one runs in a fresh folder."""
    yield
    after = run(box, "import os; print(os.listdir('.'))")
    assert (after.code, after.stdout) == (0, "['code.py']\n")


def test_an_ordinary_program(box: Sandbox) -> None:
    code = """
        import json, math, collections, threading, tempfile, subprocess
        open("own.txt", "w").write("x")
        threading.Thread(target=lambda: print("thread")).start()
        with tempfile.TemporaryFile() as file:
            file.write(b"y")
        print(input() + "!", math.pi, sorted(__import__("os").environ))
    """
    outcome = box.run(["code.py"], {"code.py": textwrap.dedent(code)}, "hello \u00e9\ud800\n".replace("\ud800", ""))
    assert outcome.status == "exited"
    assert outcome.code == 0
    assert "thread" in outcome.stdout
    assert "hello \u00e9! 3.14" in outcome.stdout
    assert "['HOME', 'LANG', 'OMP_NUM_THREADS', 'PATH', 'TMPDIR']" in outcome.stdout


def test_fork_bomb(brief: Sandbox) -> None:
    marker = f"fork-bomb-{os.getpid()}"
    code = """
        import os
        while True:
            try:
                os.fork()
            except BlockingIOError:
                pass
        """
    outcome = brief.run(["code.py", marker], {"code.py": textwrap.dedent(code)})
    assert outcome.status == "timeout" if brief.level == "namespaces" else outcome.code == 1
    assert processes_with(marker) == []


def test_number_of_processes(box: Sandbox) -> None:
    code = """
        import os, time
        children = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(600)
                children += 1
        except OSError:
            print(children)
        """
    children = int(run(box, code).stdout)
    assert children == (LIMITS.max_processes - 1 if box.level == "namespaces" else 0)


# A second of the processor or two each: the same limit at either level.
AT_ONE_LEVEL = pytest.mark.parametrize(
    "level", ["namespaces", pytest.param("landlock", marks=pytest.mark.full)], indirect=True, scope="module"
)


@AT_ONE_LEVEL
def test_infinite_loop(box: Sandbox) -> None:
    outcome = run(box, "while True: pass")
    assert (outcome.status, outcome.code) == ("exited", -signal.SIGXCPU)


@AT_ONE_LEVEL
def test_infinite_loop_that_ignores_the_signal(box: Sandbox) -> None:
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(box, code).code == -signal.SIGKILL


def test_endless_sleep(brief: Sandbox) -> None:
    outcome = run(brief, "import time\nprint('x', flush=True)\ntime.sleep(1e6)")
    assert (outcome.status, outcome.stdout) == ("timeout", "")


def test_memory_bomb(box: Sandbox) -> None:
    assert run(box, "a = bytearray(10**9)").code == 1
    assert run(box, "a = []\nwhile True: a.append(bytearray(10**7))").code != 0
    assert run(box, "import mmap\na = mmap.mmap(-1, 10**9)").code == 1


def test_huge_output(box: Sandbox) -> None:
    outcome = run(box, "while True: print('x' * 1000)")
    assert (outcome.status, outcome.stdout) == ("output", "")
    assert run(box, "import os\nwhile True: os.write(3, b'x' * 1000)").status == "output"
    assert run(box, "import os\nwhile True: os.write(2, b'x' * 1000)").code == -signal.SIGXCPU


def test_huge_files(box: Sandbox) -> None:
    assert run(box, "f = open('f', 'wb')\nwhile True: f.write(b'x' * 10**6)").code != 0


def test_network(box: Sandbox, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(path)
        unix.listen()
        abstract.bind("\0nemotron-test")
        abstract.listen()
        outcome = run(
            box,
            f"""
            import socket
            reached = []
            def attempt(name, do):
                try:
                    do()
                    reached.append(name)
                except OSError:
                    pass
            S = socket.socket
            attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {tcp.getsockname()[1]}), 2))
            attempt("udp", lambda: S(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", {udp.getsockname()!r}))
            attempt("unix", lambda: S(socket.AF_UNIX).connect({path!r}))
            attempt("abstract", lambda: S(socket.AF_UNIX).connect("\\0nemotron-test"))
            attempt("raw", lambda: S(socket.AF_INET, socket.SOCK_RAW, 1))
            attempt("netlink", lambda: S(socket.AF_NETLINK, socket.SOCK_RAW))
            attempt("name", lambda: socket.getaddrinfo("example.com", 80))
            print(reached)
            """,
        )
        assert (outcome.code, outcome.stdout) == (0, "[]\n")
        udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.recv(10)


def test_files_outside(box: Sandbox, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("secret")
    before = victim.stat()
    outcome = run(
        box,
        f"""
        import os, shutil
        victim, folder = {str(victim)!r}, {str(tmp_path)!r}
        done = []
        def attempt(name, do):
            try:
                do()
                done.append(name)
            except OSError:
                pass
        attempt("read", lambda: open(victim).read())
        attempt("write", lambda: open(victim, "w"))
        attempt("append", lambda: open(victim, "a"))
        attempt("truncate", lambda: os.truncate(victim, 0))
        attempt("create", lambda: open(folder + "/new", "w"))
        attempt("mkdir", lambda: os.mkdir(folder + "/new"))
        attempt("unlink", lambda: os.unlink(victim))
        attempt("rename", lambda: os.rename(victim, folder + "/renamed"))
        attempt("link", lambda: os.link(victim, "hard"))
        attempt("chmod", lambda: os.chmod(victim, 0o777))
        attempt("chown", lambda: os.chown(victim, 1, 1))
        attempt("utime", lambda: os.utime(victim, (1, 1)))
        attempt("xattr", lambda: os.setxattr(victim, "user.x", b"y"))
        attempt("list", lambda: os.listdir(folder))
        os.symlink(victim, "soft")
        attempt("soft", lambda: open("soft", "w"))
        attempt("passwd", lambda: open("/etc/shadow").read())
        attempt("usr", lambda: open("/usr/nemotron-test", "w"))
        attempt("root", lambda: open("/nemotron-test", "w"))
        attempt("var", lambda: open("/var/tmp/nemotron-test", "w"))
        attempt("shm", lambda: open("/dev/shm/nemotron-test", "w"))
        print(done)
        """,
    )
    assert (outcome.code, outcome.stdout) == (0, "[]\n")
    assert victim.read_text() == "secret"
    after = victim.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["victim.txt"]


def test_environment_of_others(box: Sandbox) -> None:
    outcome = run(
        box,
        f"""
        import os
        found = []
        for pid in {{os.getppid(), {os.getpid()}, 1, os.getpid(), "self", "thread-self"}}:
            for name in ("environ", "cmdline", "maps", "mem", "status"):
                try:
                    found.append(open(f"/proc/{{pid}}/{{name}}", "rb").read(10))
                except OSError:
                    pass
        print(found)
        """,
    )
    assert (outcome.code, outcome.stdout) == (0, "[]\n")


def test_signals_and_limits_of_others(box: Sandbox) -> None:
    outcome = run(
        box,
        f"""
        import os, resource, signal
        done = []
        for pid in (os.getppid(), {os.getpid()}, 1, -1, 0):
            for name, do in (
                ("kill", lambda: os.kill(pid, 0 if pid == 0 else 9)),
                ("limit", lambda: pid > 1 and resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0)) or 1 / 0),
            ):
                try:
                    do()
                    done.append((name, pid))
                except (OSError, ZeroDivisionError):
                    pass
        # Its own group it may signal; there is nobody else in it.
        print([entry for entry in done if entry != ("kill", 0)])
        """,
    )
    # To the kernel a signal to the first process of a namespace is sent, and then ignored.
    assert outcome.code in (0, -signal.SIGKILL)
    assert str(os.getpid()) not in outcome.stdout


def test_privileges(box: Sandbox) -> None:
    outcome = run(
        box,
        """
        import ctypes, os
        libc = ctypes.CDLL(None)
        results = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.ptrace(0, 0, 0, 0)]
        results += [libc.mount(b"none", b"/box", b"tmpfs", 0, None), libc.setns(0, 0), libc.chroot(b".")]
        results += [libc.syscall(425, 8, bytes(128)), libc.syscall(319, b"x", 0), libc.syscall(41, 2, 1, 0)]
        for change in (os.setuid, os.setgid):
            try:
                change(0 if os.getuid() else 1)
                results.append(0)
            except OSError:
                results.append(-1)
        print(set(results))
        """,
    )
    assert (outcome.code, outcome.stdout) == (0, "{-1}\n")


def test_processes_left_behind(box: Sandbox) -> None:
    marker = f"left-behind-{os.getpid()}"
    outcome = run(
        box,
        f"""
        import os, subprocess, sys
        command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", "{marker}"]
        try:
            subprocess.Popen(command, start_new_session=True)
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execv(command[0], command)
                os._exit(0)
            print("started", flush=True)
        except PermissionError:
            print("refused")
        """,
    )
    assert outcome.stdout == ("refused\n" if box.level == "landlock" else "started\n")
    assert processes_with(marker) == []
