"""Processes of ours: heard in whole lines, ended with all that they have started, never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron.processes.answering import healthy
from nemotron.processes.child import Child, ChildEnded, ServerChild
from nemotron.processes.vanishing import vanishing_folder

LONG_S = 60.0


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def wait_until_gone(pid: int) -> None:
    """Runs into the test's own time limit when the process stays."""
    while alive(pid):
        time.sleep(0.02)


@pytest.fixture
def server() -> Iterator[ServerChild]:
    child = ServerChild("server", hidden=["the-token"])
    yield child
    child.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def test_stray_lines_are_no_announcement_and_no_crash(server: ServerChild) -> None:
    code = "print('Loading weights: 100%'); print('[1, 2]'); print(); print('\\x00{'); print('{\"port\": 5}'); input()"
    server.start_server(python(code), {})
    assert server.announcement(LONG_S) == {"port": 5}


def test_half_a_line_does_not_outlast_the_time(server: ServerChild) -> None:
    server.start_server(python("import sys; sys.stdout.write('{\"port\": '); sys.stdout.flush(); sys.stdin.read()"), {})
    assert server.announcement(1.0) is None
    assert server.returncode() is None


def test_a_server_that_dies_says_why_without_its_token(server: ServerChild) -> None:
    server.start_server(python("import sys; print('no {'); sys.exit('the-token is wrong')"), {})
    assert server.announcement(LONG_S) is None
    assert (server.returncode(), server.tail()) == (1, ":\n[token] is wrong")


def test_lines_go_both_ways_and_end_with_the_process() -> None:
    child = Child("worker")
    child.start(python("while True: print(input()[::-1])"), os.environ)
    deadline = time.monotonic() + LONG_S
    for word in (b"abc", b"x" * 100_000):
        child.send(word)
        assert child.line(deadline) == word[::-1]
    with pytest.raises(TimeoutError):
        child.line(time.monotonic())
    child.kill()
    with pytest.raises(ChildEnded):
        child.line(deadline)
    child.process.wait()
    # What the pipe's buffer takes is not noticed: more than it holds is.
    with pytest.raises(ChildEnded):
        child.send(b"abc" * 1_000_000)
    child.close()
    assert not child.running


def test_what_a_child_has_started_ends_with_it() -> None:
    child = Child("parent")
    child.start(python("import subprocess; print(subprocess.Popen(['sleep', '600']).pid); input()"), os.environ)
    grandchild = int(child.line(time.monotonic() + LONG_S))
    assert alive(grandchild)
    child.close(patience_s=0.1)
    wait_until_gone(grandchild)


LEASH = """
import subprocess, sys, time
from nemotron.processes.child import ServerChild
server = ServerChild("other")
server.start_on_leash(sys.argv[1:], {})
print(server.process.pid, flush=True)
time.sleep(600)
"""
OTHER = """
import subprocess, sys, time
with open(sys.argv[1], "w") as note:
    note.write(str(subprocess.Popen(["sleep", "600"]).pid))
time.sleep(600)
"""


def test_a_program_that_knows_nothing_of_us_ends_with_us(tmp_path: Path) -> None:
    """Killed with -9, its parent cannot tell it to."""
    note = tmp_path / "pid"
    parent = subprocess.Popen(python(LEASH) + python(OTHER) + [str(note)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    leash = int(parent.stdout.readline())
    while not (note.exists() and note.read_text().strip()):
        time.sleep(0.02)
    started = int(note.read_text())
    assert alive(leash)
    assert alive(started)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until_gone(leash)
    wait_until_gone(started)


def test_the_leash_says_how_the_program_ended() -> None:
    words = [sys.executable, "-m", "nemotron.processes.leash"]
    for code in ("raise SystemExit(7)", "import os; os.kill(os.getpid(), 15)"):
        with subprocess.Popen([*words, *python(code)], stdin=subprocess.PIPE) as leash:
            assert leash.wait() == (7 if "7" in code else 143)


def test_whether_a_server_answers(server: ServerChild, tmp_path: Path) -> None:
    code = (
        "import http.server as h, sys; s = h.HTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler);"
        "open(sys.argv[1], 'w').write(str(s.server_port)); s.serve_forever()"
    )
    note = tmp_path / "port"
    server.start_server([*python(code), str(note)], {})
    while not (note.exists() and note.read_text()):
        time.sleep(0.02)
    url = f"http://127.0.0.1:{note.read_text()}"
    assert server.answers(url, LONG_S)
    assert not server.answers(f"{url}/nothing-here", 0.5)
    server.kill()
    server.process.wait()
    assert not server.answers(url, LONG_S)


CLEAN_PARENT = LEASH.replace("sys.argv[1:], {}", "sys.argv[2:], {}, clean=True, polite_s=float(sys.argv[1])")
LEAVES_FILES = """
import os, signal, socket, sys, tempfile, time
left = socket.socket(socket.AF_UNIX)
left.bind(os.path.join(tempfile.gettempdir(), "a-socket"))
def stop(*_):
    open(sys.argv[2], "w").write("asked to end")
    if sys.argv[3] == "polite":
        sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1], "w").write(tempfile.gettempdir())
while True:
    time.sleep(600)
"""


@pytest.mark.parametrize("manners", ["polite", "deaf"])
@pytest.mark.parametrize("end", ["kill -9 of the parent", "kill -9 of the program", "close"])
def test_temporary_files_of_a_program_go_with_it(tmp_path: Path, manners: str, end: str) -> None:
    note, asked = tmp_path / "folder", tmp_path / "asked"
    words = [*python(LEAVES_FILES), str(note), str(asked), manners]
    server = ServerChild("other")
    # Who ends when asked does so at once, but a busy machine may not let it.
    polite_s = LONG_S if manners == "polite" else 0.5
    if end == "kill -9 of the parent":
        parent = subprocess.Popen([*python(CLEAN_PARENT), str(polite_s), *words], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        leash = int(parent.stdout.readline())
    else:
        server.start_on_leash(words, {}, clean=True, polite_s=polite_s)
        leash = server.process.pid
    while not (note.exists() and note.read_text()):
        time.sleep(0.02)
    folder = Path(note.read_text())
    assert [path.name for path in folder.iterdir()] == ["a-socket"]
    assert folder.parent == Path(tempfile.gettempdir())
    if end == "kill -9 of the parent":
        parent.kill()
        parent.wait()
        parent.stdout.close()
    elif end == "close":
        server.close(patience_s=LONG_S)
    else:
        os.killpg(leash, 9)
    wait_until_gone(leash)
    while folder.exists():
        time.sleep(0.02)
    server.close()
    if end != "kill -9 of the program":
        assert asked.read_text() == "asked to end"


VANISHING = """
import os, sys
from nemotron.processes.vanishing import vanishing_folder
with vanishing_folder() as folder:
    (folder / "large").write_text("weights")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [0, 9])
def test_a_folder_goes_with_its_process(number: int) -> None:
    with subprocess.Popen(python(VANISHING), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        folder = Path(parent.stdout.readline().strip())
        assert (folder / "large").read_text() == "weights"
        # Nobody else may look into it.
        assert folder.stat().st_mode & 0o777 == 0o700
        if number:
            parent.send_signal(number)
    while folder.exists():
        time.sleep(0.02)


def test_a_folder_goes_when_its_block_ends_in_an_error(tmp_path: Path) -> None:
    def fails() -> None:
        with vanishing_folder(tmp_path) as folder:
            (folder / "large").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_a_server_at_a_socket_is_asked_there() -> None:
    code = (
        "import http.server as h, socketserver, sys\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/health' else 503); self.end_headers()\n"
        "    def address_string(self): return ''\n"
        "s = socketserver.UnixStreamServer(sys.argv[1], H); print('up', flush=True); s.serve_forever()"
    )
    child = Child("server")
    with vanishing_folder() as folder:
        at = folder / "socket"
        assert healthy(f"unix:{at}:/health") is False
        child.start([*python(code), str(at)], os.environ)
        assert child.line(time.monotonic() + LONG_S) == b"up"
        assert healthy(f"unix:{at}:/health") is True
        assert healthy(f"unix:{at}:/other") is False
        child.close(patience_s=0)
        assert healthy(f"unix:{at}:/health") is False
