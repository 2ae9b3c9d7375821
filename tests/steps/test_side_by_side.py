"""Nodes of a pipeline that work at the same time: what they do shows it, for each waits until the other is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron.executors import goes_on
from nemotron.pipelines.state import started
from nemotron.processes.cores import usable_cores
from nemotron.runs.folder import list_runs
from tests import forked
from tests.alive import is_alive
from tests.in_process import Result, nemotron
from tests.steps.commands import TIMEOUT_S

pytestmark = pytest.mark.timeout(300)

MANIFEST = """\
title = "Come to a meeting"
description = "Says that it is there, and waits for others."
launch = "python"
"""
CONFIG = "place: ???\nme: ???\nwaits: []\nfails: false\n"
STEP = '''
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nemotron.compile.declaration import PlainStep
from nemotron.compile.jobs.step import PlainJob
from nemotron.compile.rules.base import Rules
from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import DiskPath
from nemotron.errors import DataError
from nemotron.processes.cores import usable_cores


class Config(Strict):
    """What it is asked for."""

    place: DiskPath
    """Where all meet."""
    me: str
    """Its own name."""
    waits: list[str]
    """Those that it waits for."""
    fails: bool
    """Ends badly, once the others are there."""


@dataclass(frozen=True)
class Job(PlainJob[Config]):
    """Nothing is known of it before."""


def run(attempt):
    config = attempt.settings(Config)
    attempt.run.write_status(state="running", phase="waiting")
    place = Path(config.place)
    said = place / f".{config.me}"
    said.write_text(json.dumps({"cores": usable_cores(), "process": os.getpid()}))
    said.rename(place / config.me)
    print(f"{config.me} is here", file=sys.stderr)
    os.system(f"echo {config.me} says it by another program")
    until = time.monotonic() + 150
    while missing := [name for name in config.waits if not (place / name).exists()]:
        if time.monotonic() > until:
            raise DataError(f"{missing} did not come")
        time.sleep(0.02)
    if config.fails:
        raise DataError("it was told to fail")
    attempt.run.write_status(state="finished", exit_code=0)


STEP = PlainStep(config=Config, job=Job, rules=((Rules("meet"),),), run=f"{__name__}:run")
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    step = tmp_path / "steps" / "mine" / "meet"
    (step / "config").mkdir(parents=True)
    (step / "step.toml").write_text(MANIFEST)
    (step / "step.py").write_text(STEP)
    (step / "config" / "default.yaml").write_text(CONFIG)
    (tmp_path / "place").mkdir()
    return tmp_path


def node(folder: Path, name: str, waits: str = "", *, after: str = "", fails: bool = False) -> dict[str, object]:
    """One node, which waits for others at the meeting, and begins behind those of the pipeline."""
    values = {"place": str(folder / "place"), "me": name, "waits": waits.split(), "fails": fails}
    return {"step": "mine/meet", "overrides": values, "after": after.split()}


def write(folder: Path, nodes: dict[str, dict[str, object]]) -> None:
    (folder / "meet.yaml").write_text(json.dumps({"nodes": nodes, "result": list(nodes)}))


def run(folder: Path, *words: str) -> Result:
    return nemotron("--steps-dir", "steps", "pipelines", *words, cwd=folder)


def states(folder: Path) -> dict[str, str]:
    return {one.name: one.state for one in started(folder / "runs")[-1].read().nodes}


def there(folder: Path, name: str) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / "place" / name).read_text())
    return found


def until(moment: Callable[[], bool], command: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not moment():
        assert command is None or command.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_nodes_work_at_once_and_every_line_says_whose_it_is(folder: Path) -> None:
    write(folder, {"a": node(folder, "a", "b"), "b": node(folder, "b", "a"), "c": node(folder, "c", after="a b")})
    done = run(folder, "run", "meet.yaml", "--side-by-side", "2")
    assert done.code == 0, done.stderr
    assert states(folder) == dict.fromkeys("abc", "finished")
    for name in "abc":
        assert f"\n{name}: {name} is here\n" in done.stderr
        assert f"{name}: {name} says it by another program\n" in done.stdout
    assert "3 nodes, 2 at once" in done.stderr
    # Nothing can be at work beside the last one.
    shared, all_of_them = max(1, usable_cores() // 2), usable_cores()
    assert [there(folder, name)["cores"] for name in "abc"] == [shared, shared, all_of_them]
    again = run(folder, "run", "meet.yaml", "--side-by-side", "2")
    assert again.code == 0, again.stderr
    assert states(folder) == dict.fromkeys("abc", "reused")


def test_a_node_that_fails_stops_what_needs_it_and_leaves_the_one_beside_it_at_work(folder: Path) -> None:
    nodes = {
        "bad": node(folder, "bad", "good", fails=True),
        # It ends only after the third has begun, and that one has a slot only when the first has failed.
        "good": node(folder, "good", "third"),
        "third": node(folder, "third"),
        "behind": node(folder, "behind", after="bad"),
        "further": node(folder, "further", after="good"),
    }
    write(folder, nodes)
    done = run(folder, "run", "meet.yaml", "--side-by-side", "2")
    assert done.code == 5, done.stderr
    assert states(folder) == {
        "bad": "failed", "good": "finished", "third": "finished", "behind": "skipped", "further": "finished",
    }  # fmt: skip
    assert "bad: error: it was told to fail" in done.stderr


def begun(folder: Path) -> subprocess.Popen[str]:
    """A pipeline of which two nodes are at work, in a session of its own."""
    write(folder, {"a": node(folder, "a", "b go"), "b": node(folder, "b", "a go"), "c": node(folder, "c", after="a b")})
    words = ["--steps-dir", "steps", "pipelines", "run", "meet.yaml", "--side-by-side", "2"]
    command = subprocess.Popen(
        [sys.executable, "-m", "nemotron", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: all((folder / "place" / name).exists() for name in "ab"), command)
    return command


def goes_on_to_the_end(folder: Path) -> None:
    """Both are at work once more, again at once, and then the third."""
    for name in "ab":
        (folder / "place" / name).unlink()
    (folder / "place" / "go").touch()
    before = {run.id for run in list_runs(folder / "runs")}
    with forked.apart():
        again = run(folder, "resume", "last")
    assert again.code == 0, again.stderr
    assert states(folder) == dict.fromkeys("abc", "finished")
    assert before < {run.id for run in list_runs(folder / "runs")}
    assert len(list_runs(folder / "runs")) == 3, "those that were cut off went on"


@pytest.mark.parametrize("by", [pytest.param("another terminal", marks=pytest.mark.full), "Ctrl-C"])
def test_both_save_their_state_when_the_pipeline_is_ended(folder: Path, by: str) -> None:
    command = begun(folder)
    shown = json.loads(run(folder, "status", "last", "--json").stdout)
    assert [one["state"] for one in shown["nodes"]] == ["running", "running", "waiting"]
    processes = [there(folder, name)["process"] for name in "ab"]
    if by == "Ctrl-C":
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does: every process of it
    else:
        assert run(folder, "cancel").code == 0
    _, said = command.communicate(timeout=TIMEOUT_S)
    assert command.returncode == 130, said
    assert not any(map(is_alive, processes))
    assert states(folder) == {"a": "interrupted", "b": "interrupted", "c": "waiting"}
    assert [one.status().state for one in list_runs(folder / "runs")] == ["interrupted", "interrupted"]
    goes_on_to_the_end(folder)


def test_a_node_whose_process_is_killed_says_so_and_the_other_ends(folder: Path) -> None:
    command = begun(folder)
    os.kill(there(folder, "a")["process"], signal.SIGKILL)
    until(lambda: states(folder)["a"] == "failed", command)
    (folder / "place" / "go").touch()
    _, said = command.communicate(timeout=TIMEOUT_S)
    assert command.returncode == 128 + signal.SIGKILL, said
    assert states(folder) == {"a": "failed", "b": "finished", "c": "skipped"}
    assert "a: failed: its process was ended by signal 9 (SIGKILL), as when memory runs out" in said
    (folder / "place" / "a").unlink()
    again = run(folder, "resume", "last")
    assert again.code == 0, again.stderr
    assert states(folder) == dict.fromkeys("abc", "finished")


def test_a_pipeline_goes_on_where_its_relative_paths_begin(folder: Path) -> None:
    """Another folder may have other files by the same names."""
    write(folder, {"a": node(folder, "a", fails=True)})
    assert run(folder, "run", "meet.yaml").code == 5
    (folder / "elsewhere").mkdir()
    words = ("--steps-dir", "../steps", "pipelines", "resume", "--runs-dir", "../runs")
    refused = nemotron(*words, cwd=folder / "elsewhere")
    assert refused.code == 6, refused.stderr
    assert f"was started in `{folder}`" in refused.stderr
    assert f"`cd {folder}`" in refused.stderr
    assert run(folder, "resume", "last").code == 5, "it is tried again"


def test_nothing_is_left_of_a_pipeline_that_was_killed(folder: Path) -> None:
    command = begun(folder)
    processes = [there(folder, name)["process"] for name in "ab"]
    command.kill()
    command.communicate(timeout=TIMEOUT_S)
    until(lambda: not any(map(is_alive, processes)))
    assert not any(goes_on(one) for one in list_runs(folder / "runs"))
    assert states(folder) == {"a": "running", "b": "running", "c": "waiting"}
    assert run(folder, "status", "last").stdout.splitlines()[0].endswith(": interrupted")
    goes_on_to_the_end(folder)
