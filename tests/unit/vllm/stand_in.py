"""A small program in the place of `vllm`: it behaves badly as a process, in ways that the real one would not on demand.

What the real one says and does is what tests/integration/test_vllm_server.py is for.
"""

from __future__ import annotations

import json
import stat
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from nemotron.config.schema.judge import GenrmModelConfig
from tests.alive import is_alive

PROGRAM = """
import http.server, json, os, signal, sys, threading, time
words = sys.argv[1:]
flag = lambda name: words[words.index(name) + 1]
how, notes = json.loads(os.environ["HOW"]), os.environ["NOTES"]
with open(os.path.join(notes, "starts"), "a") as starts:
    noted = {"argv": words, "pid": os.getpid(), "at": time.time(), "environ": dict(os.environ)}
    starts.write(json.dumps(noted) + "\\n")
life = len(open(os.path.join(notes, "starts")).readlines())
print("(APIServer pid=1) INFO 11-28 17:48:27 [model.py:1] Loading the stand-in", flush=True)
if life <= how["fails_at_start"] or life in how["fails_in_lives"]:
    print("ValueError: no such luck in life", life, file=sys.stderr)
    sys.exit(1)
if how["never_ready"]:
    time.sleep(600)
asked, lock, dead = 0, threading.Lock(), threading.Event()

class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def say(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/health":
            return self.say(503 if dead.is_set() else 200, {})
        if self.headers["authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            return self.say(401, {})
        self.say(200, {"data": [{"id": how["serves"] or flag("--served-model-name")}]})
    def do_POST(self):
        global asked
        self.rfile.read(int(self.headers["content-length"]))
        with lock:
            asked += 1
            number = asked
        if life <= how["lives_cut_short"] and number > how["answers"]:
            if how["how"] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            dead.set()
        if dead.is_set():
            return self.say(500, {"error": "EngineDeadError"})
        said = json.dumps({"score_1": 4, "score_2": 2, "ranking": 2})
        self.say(200, {"choices": [{"message": {"content": said}}]})
    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer.request_queue_size = 64
http.server.ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Answers).serve_forever()
"""


@dataclass(frozen=True)
class How:
    """How it behaves."""

    never_ready: bool = False
    fails_at_start: int = 0
    """Lives that end before it listens, from the first."""
    fails_in_lives: tuple[int, ...] = ()
    """Further ones."""
    serves: str = ""
    """The name of its model, instead of the one it is given."""
    lives_cut_short: int = 0
    """Lives, from the first, that end after some answers."""
    answers: int = 3
    """How many those give."""
    how: str = "dies"
    """``dies``, or ``hangs``: it stays, and answers with errors as vLLM does when its engine is dead."""


class StandIn:
    """The program in ``folder``, and what it notes about its starts."""

    def __init__(self, folder: Path, how: How = How()) -> None:
        self.how, self.folder = how, folder
        self.program = folder / "environment" / "bin" / "vllm"
        self.program.parent.mkdir(parents=True)
        self.program.write_text(f"#!{sys.executable}\n{textwrap.dedent(PROGRAM)}")
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    @property
    def variables(self) -> dict[str, str]:
        """What tells it how to behave."""
        return {"HOW": json.dumps(asdict(self.how)), "NOTES": str(self.folder)}

    def judge(self, **settings: object) -> GenrmModelConfig:
        """The block of a judge that it serves."""
        serve = {"vllm_serve_kwargs": settings} if settings else {}
        block = {"model": "some/judge", "vllm_serve_env_vars": self.variables, **serve}
        return GenrmModelConfig.model_validate(block)

    @property
    def starts(self) -> list[dict[str, object]]:
        """What it noted at every start."""
        noted = self.folder / "starts"
        return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []

    def left(self) -> list[int]:
        """Processes of it that run."""
        return [pid for start in self.starts if is_alive(pid := int(str(start["pid"])))]
