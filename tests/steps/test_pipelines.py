"""Pipelines at work: what was done is taken over, a killed one ends with the same bits, a gate closes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.made import made_by
from nemotron.errors import ConfigError
from nemotron.executors import goes_on
from nemotron.pipelines import drive
from nemotron.pipelines.state import PipelineFolder, started
from nemotron.runs.folder import RunFolder, list_runs
from tests import forked
from tests.in_process import Result, nemotron
from tests.steps.commands import TIMEOUT_S

SHORT = """\
title: Pairs to a policy
result: hf
nodes:
  pairs:
    step: data_prep/rl_prep
    config: tiny
    overrides:
      blend.train: [{path: "${asset:tiny_world/data/pairs_train.jsonl}", weight: 0.1}]
      blend.validation: ["${asset:tiny_world/data/pairs_validation.jsonl}"]
      blend.heldout: ["${asset:tiny_world/data/pairs_heldout.jsonl}"]
  rm:
    step: rl/nemo_rl/rm
    config: tiny
    overrides:
      rm.max_num_steps: 2
      checkpointing.save_period: 1
      bradley_terry.statistics_pairs: 16
      eval.heldout: {split: heldout, max_samples: 8}
    takes: {prepared_data: pairs}
  audit:
    step: eval/reward_audit
    config: tiny
    overrides: {audit.pairs: 32, data.split: heldout, limits.min_agreement: 0.0}
    takes: {prepared_data: pairs, reward_model.path: rm.checkpoint_hf}
  dpo:
    step: rl/nemo_rl/dpo
    config: tiny
    overrides:
      dpo.max_num_steps: 2
      checkpointing.save_period: 1
      checkpointing.save_consolidated: false
      eval.heldout: null
    takes: {prepared_data: pairs}
    after: audit
  hf:
    step: convert/megatron_to_hf
    takes: {checkpoint_megatron: dpo}
"""
pytestmark = pytest.mark.timeout(900)
NODES = ("pairs", "rm", "audit", "dpo", "hf")


@pytest.fixture(autouse=True, scope="module")
def nodes_are_forks() -> Iterator[None]:
    """Where the pipeline is run here. That a new process has all that a node needs is shown by what is killed, and by
    test_side_by_side and test_api."""
    with forked.apart():
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pipeline was run once."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "short.yaml").write_text(SHORT)
    result = pipeline(folder)
    assert result.code == 0, result.stderr
    return folder


def pipeline(folder: Path, *words: str) -> Result:
    return nemotron("pipelines", "run", "short.yaml", *words, cwd=folder)


def states(folder: Path) -> dict[str, str]:
    return {node.name: node.state for node in started(folder / "runs")[-1].read().nodes}


def run_of(folder: PipelineFolder, node: str) -> RunFolder:
    state = folder.read()
    return RunFolder.open(Path(state.runs_dir) / str(state.node(node).run))


def results(folder: PipelineFolder) -> dict[str, str]:
    """The content of what the nodes made."""
    kinds = {"pairs": "prepared_data", "rm": "checkpoint_hf", "dpo": "checkpoint_megatron", "hf": "checkpoint_hf"}
    found = {}
    for node in (one.name for one in folder.read().nodes if one.name in kinds):
        kind = kinds[node]
        path = made_by(run_of(folder, node), kind)
        # Of data the shards: their manifest names the sources by where they lie.
        found[node] = fingerprint(path.parent if path.is_file() else path)
    return found


def test_every_node_is_an_ordinary_run_and_the_page_links_them(done: Path) -> None:
    first = started(done / "runs")[0]
    state = first.read()
    assert [(node.name, node.state) for node in state.nodes] == [(name, "finished") for name in NODES]
    page = first.report.read_text()
    for node in state.nodes:
        run = run_of(first, node.name)
        member = run.job().asked.pipeline
        assert member is not None
        assert (member.id, member.node) == (first.id, node.name)
        if run.report.is_file():
            assert f'href="../../runs/{run.id}/report.html"' in page
    # What the next node was given is what the one before made, by its content.
    given = {one.key: one.path for one in run_of(first, "audit").job().inputs}
    assert given["reward_model.path"] == str(made_by(run_of(first, "rm"), "checkpoint_hf"))
    assert (made_by(run_of(first, "hf"), "checkpoint_hf") / "config.json").is_file()
    # The gate's own page shows the whole chain: the reward model, and the pairs that it was trained on.
    chain = run_of(first, "audit").report.read_text().partition("What the inputs were made of")[2]
    for name in ("rm", "pairs"):
        assert f"run {run_of(first, name).id}" in chain


def test_what_was_done_is_taken_from_the_run_that_did_it(done: Path) -> None:
    before = [run.id for run in list_runs(done / "runs")]
    again = pipeline(done)
    assert again.code == 0, again.stderr
    assert states(done) == dict.fromkeys(NODES, "reused")
    assert all(f"{node}: reused, " in again.stderr for node in NODES)
    assert [run.id for run in list_runs(done / "runs")] == before


@pytest.mark.full
def test_one_override_leaves_what_is_before_it(done: Path) -> None:
    other = pipeline(done, "rm.policy.optimizer.kwargs.lr=0.0005")
    assert other.code == 0, other.stderr
    assert states(done) == {
        "pairs": "reused", "rm": "finished", "audit": "finished",
        # The policy is trained on the same pairs: only the gate before it looks at the reward model.
        "dpo": "reused", "hf": "reused",
    }  # fmt: skip


@pytest.mark.full
def test_from_force_and_until_say_what_is_done_anew(done: Path) -> None:
    assert pipeline(done, "--from", "dpo", "--until", "dpo").code == 0
    assert states(done) == {"pairs": "reused", "rm": "reused", "audit": "reused", "dpo": "finished", "hf": "left"}
    # The same bits come out of it, so what is behind it need not be done again.
    assert pipeline(done, "--force", "dpo").code == 0
    assert states(done) == {**dict.fromkeys(NODES, "reused"), "dpo": "finished"}
    assert pipeline(done, "--force", "dop").code == 4


@pytest.mark.full
def test_a_result_that_was_taken_away_is_made_again(done: Path, tmp_path: Path) -> None:
    newest = [run for run in list_runs(done / "runs") if run.job().step == "convert/megatron_to_hf"]
    moved = []
    for run in newest:
        (run.path / "output").rename(run.path / "output.gone")
        moved.append(run)
    try:
        assert pipeline(done).code == 0
        assert states(done) == {**dict.fromkeys(NODES, "reused"), "hf": "finished"}
    finally:
        for run in moved:
            (run.path / "output.gone").rename(run.path / "output")


def test_a_gate_stops_what_is_behind_it_and_says_why(done: Path) -> None:
    closed = pipeline(done, "audit.limits.min_agreement=1.0", "dpo.dpo.seed=7")
    assert closed.code == 9, closed.stderr
    assert states(done) == {
        "pairs": "reused", "rm": "reused", "audit": "stopped", "dpo": "skipped", "hf": "skipped",
    }  # fmt: skip
    shown = nemotron("pipelines", "status", "last", "--json", cwd=done)
    rows = {row["name"]: row for row in json.loads(shown.stdout)["nodes"]}
    assert "agreement" in rows["audit"]["reason"]
    assert rows["dpo"]["reason"] == "`audit` is stopped"
    assert rows["dpo"]["run"] is None
    # A gate that is resumed is asked again, and says the same.
    again = nemotron("pipelines", "resume", "last", cwd=done)
    assert again.code == 9, again.stderr


@pytest.mark.full
def test_a_pipeline_whose_file_was_changed_does_not_go_on(done: Path) -> None:
    assert pipeline(done, "audit.limits.min_agreement=1.0").code == 9
    (done / "short.yaml").write_text(SHORT.replace("dpo.max_num_steps: 2", "dpo.max_num_steps: 3"))
    try:
        refused = nemotron("pipelines", "resume", "last", cwd=done)
    finally:
        (done / "short.yaml").write_text(SHORT)
    assert refused.code == 6, refused.stderr
    assert "`dpo`" in refused.stderr


def at_work(folder: Path, *nodes: str) -> bool:
    """Whether these nodes are at work."""
    found = started(folder / "runs")
    return bool(found) and {*nodes} <= {one.name for one in found[-1].read().nodes if one.state == "running"}


def saved(folder: Path, node: str) -> bool:
    """Whether a node is at work and has saved its first checkpoint."""
    found = list_runs(folder / "runs") if at_work(folder, node) else []
    run = started(folder / "runs")[-1].read().node(node).run if found else None
    return run is not None and (folder / "runs" / run / "checkpoints" / "step_1").is_dir()


def kill_and_resume(
    folder: Path, moment: float | Callable[[Path], bool], *asked: str, text: str = SHORT
) -> PipelineFolder:
    """Start the pipeline, kill it in that moment or after so many seconds, and resume until it is done."""
    folder.mkdir(exist_ok=True)
    (folder / "short.yaml").write_text(text)
    words = [sys.executable, "-m", "nemotron", "pipelines", "run", "short.yaml", *asked]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    command = subprocess.Popen(words, cwd=folder, start_new_session=True, **quiet)
    begun = time.monotonic()
    while command.poll() is None and not (moment(folder) if callable(moment) else time.monotonic() - begun > moment):
        assert time.monotonic() - begun < TIMEOUT_S
        time.sleep(0.02)
    if callable(moment):
        assert command.poll() is None, "the pipeline ended before the moment came"
    # The command and the runs that it works on, as the kernel does when memory is gone.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)
    command.wait(TIMEOUT_S)
    go_on = ("resume", "last") if started(folder / "runs") else ("run", "short.yaml", *asked)
    again = nemotron("pipelines", *go_on, cwd=folder)
    assert again.code == 0, again.stderr
    return started(folder / "runs")[-1]


MOMENTS: dict[str, float | Callable[[Path], bool]] = {
    "while the data is prepared": lambda folder: at_work(folder, "pairs"),
    "after a checkpoint of the reward model": lambda folder: saved(folder, "rm"),
}
if os.environ.get("EVERY_MOMENT"):
    MOMENTS["while the policy starts"] = lambda folder: at_work(folder, "dpo")
    MOMENTS |= {f"at any time {number}": random.Random(number).uniform(1.0, 25.0) for number in range(10)}


@pytest.mark.full
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pipeline_that_is_killed_at_any_moment_ends_with_the_same_bits(
    done: Path, tmp_path: Path, moment: str
) -> None:
    whole = results(started(done / "runs")[0])
    assert results(kill_and_resume(tmp_path / "killed", MOMENTS[moment])) == whole


# Without the gate the policy need not wait for the reward model; nor are the bits other ones in another format.
APART = re.sub(r"  (audit|hf):\n(    .*\n)+", "", SHORT.replace("    after: audit\n", ""))
APART = APART.replace("result: hf", "result: [rm, dpo]")
AT_ONCE = ("--side-by-side", "2")


@pytest.mark.full
@pytest.mark.usefixtures("own_threads")
def test_two_nodes_that_are_killed_side_by_side_end_with_the_same_bits(tmp_path: Path) -> None:
    """Without the gate, two nodes at a time: each with fewer threads than alone, so with other last bits."""
    (tmp_path / "short.yaml").write_text(APART)
    result = pipeline(tmp_path, *AT_ONCE)
    assert result.code == 0, result.stderr
    whole = started(tmp_path / "runs")[0]

    def both_train(folder: Path) -> bool:
        return at_work(folder, "rm", "dpo") and (saved(folder, "rm") or saved(folder, "dpo"))

    folder = kill_and_resume(tmp_path / "killed", both_train, *AT_ONCE, text=APART)
    assert [one.read().side_by_side for one in (whole, folder)] == [2, 2]
    assert results(folder) == results(whole)


def test_a_cancelled_pipeline_says_so_and_goes_on(done: Path, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(SHORT)
    words = [sys.executable, "-m", "nemotron", "pipelines", "run", "short.yaml"]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.DEVNULL)
    command = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **quiet)

    until = time.monotonic() + TIMEOUT_S
    while not any(at_work(tmp_path, node) for node in NODES):
        assert command.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    assert "running" in nemotron("pipelines", "status", cwd=tmp_path).stdout
    assert nemotron("pipelines", "cancel", cwd=tmp_path).code == 0
    _, said = command.communicate(timeout=TIMEOUT_S)
    assert command.returncode == 130, said
    assert re.search(r"goes on with `nemotron pipelines resume \S+-short-\w{4}`", said)
    folder = started(tmp_path / "runs")[-1]
    assert not any(goes_on(run) for run in list_runs(tmp_path / "runs"))
    assert nemotron("pipelines", "status", "last", cwd=tmp_path).stdout.startswith(f"{folder.id}: interrupted")
    assert nemotron("pipelines", "cancel", cwd=tmp_path).code == 4


@pytest.mark.parametrize("error", [AttributeError("half of it is gone"), ConfigError("half of it is gone")])
def test_an_interrupt_of_which_something_else_comes_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """And does not count as the failure of one node, after which others are begun."""

    def broken_off(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise error

    (tmp_path / "short.yaml").write_text(SHORT)
    monkeypatch.setattr(drive._Driver, "_compiled", broken_off)
    result = pipeline(tmp_path)
    assert result.code == 130, result.stderr
    folder = started(tmp_path / "runs")[-1]
    assert f"the pipeline goes on with `nemotron pipelines resume {folder.id}`" in result.stderr
    assert [folder.read().node(name).state for name in NODES] == ["interrupted", *["waiting"] * (len(NODES) - 1)]
