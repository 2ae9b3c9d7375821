"""Every way in which NeMo-RL ends is told as what it is: state, exit code, and the words that say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron.engines.base import ENGINES
from nemotron.engines.nemo_rl.run import Patience, train
from nemotron.engines.worker import work
from nemotron.errors import DataError, EngineError, LimitError, NemotronError, OutOfTimeError
from nemotron.job import CompiledJob
from nemotron.runs.folder import RunFolder
from tests.compiled_jobs import attempt_at
from tests.unit.engines.nemo_rl.test_config import JUDGE
from tests.unit.engines.nemo_rl.world import make_run, make_tree

STEPS = ("dpo.max_num_steps=3", "checkpointing.save_period=1")


def ended(run: RunFolder) -> NemotronError:
    with pytest.raises(NemotronError) as caught:
        work(run, {})
    status = run.status()
    assert (status.error, status.exit_code) == (caught.value.message, caught.value.exit_code)
    return caught.value


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_run_that_does_what_it_should(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its destructor would wait for ever; the process ends all the same."""
    make_tree(tmp_path / "tree", monkeypatch, "fine")
    run = make_run(runs, *STEPS)
    assert work(run, {}) == 0
    status = run.status()
    assert (status.state, status.steps_done, status.steps_total) == ("finished", 3, 3)
    assert status.checkpoint == "checkpoints/step_3"
    rows = {row["step"]: row for row in run.read_metrics()}
    assert sorted(rows) == [0, 1, 2, 3]
    assert rows[0]["validation-default_accuracy"] == 0.5
    assert rows[2]["train/loss"] == 0.5
    assert rows[2]["timing/train/total_step_time"] == 0.1
    assert not {"train/table", "train/bad"} & set(rows[2])
    assert run.report.is_file()

    folder = run.path / "nemo_rl"
    launch = json.loads((folder / "launch.json").read_text())
    assert launch["version"] == "v0.7.0"
    assert launch["argv"][3:5] == ["examples/run_dpo.py", "--config"]
    [rows_file] = launch["data"]["train"]
    lines = (folder / "data" / rows_file["file"]).read_text().splitlines()
    assert rows_file["rows"] == len(lines) > 0
    assert set(json.loads(lines[0])) == {"context", "completions"}


@pytest.mark.parametrize(
    ("how", "kind", "state", "words"),
    [
        ("swallows", EngineError, "failed", ["ended with code 0 after step 1 of 3", "CUDA error"]),
        ("raises", EngineError, "failed", ["ended with code 1 after step 1", "the worker died"]),
        ("refused", EngineError, "failed", ["ended with code 1 after step 0", "use_linear_ce_fusion_loss"]),
        ("killed", EngineError, "failed", ["ended by signal 9 after step 1"]),
        ("no checkpoint", EngineError, "failed", ["`step_3` is not in"]),
    ],
)
def test_a_run_that_fails(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    kind: type[NemotronError],
    state: str,
    words: list[str],
) -> None:
    make_tree(tmp_path / "tree", monkeypatch, how)
    run = make_run(runs, *STEPS)
    error = ended(run)
    assert (type(error), run.status().state) == (kind, state)
    assert all(word in error.message for word in words), error.message
    assert error.hint is not None
    assert "nemo_rl.log" in error.hint


def test_a_run_whose_time_is_up_goes_on(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "tree", monkeypatch, "out of time")
    run = make_run(runs, *STEPS, "checkpointing.checkpoint_must_save_by=00:00:10:00")
    assert isinstance(ended(run), OutOfTimeError)
    assert (run.status().state, run.status().exit_code) == ("stopped", 130)
    monkeypatch.setenv("HOW", "fine")
    assert work(run, {}) == 0
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3]
    assert len(list((run.path / "nemo_rl").glob("metrics-*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("how", "patience", "words"),
    [
        # What is written while a server is waited for is no sign of life.
        ("never starts", Patience(start_s=1.5, silence_s=60.0, poll_s=0.05), "hangs before its first step"),
        ("hangs", Patience(start_s=60.0, silence_s=1.5, poll_s=0.05), "hangs after step 1"),
    ],
)
def test_a_run_that_hangs_is_ended(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, patience: Patience, words: str
) -> None:
    make_tree(tmp_path / "tree", monkeypatch, how)
    run = make_run(runs, *STEPS)
    with run.lock(), attempt_at(run) as attempt, pytest.raises(EngineError, match=words):
        train(attempt, patience=patience)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("drifts", "after step 2: KL to the reference is 5, above `limits.max_kl` 1"),
        ("misses", "after step 2: 50% of what the rewards asked for is missing, above `limits.max_missing_share` 5%"),
    ],
)
def test_our_limit_ends_it_from_outside(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    make_tree(tmp_path / "tree", monkeypatch, how)
    run = make_run(
        runs,
        *("grpo.max_num_steps=3", "checkpointing.save_period=1", "limits.max_kl=1.0"),
        "rewards.functions=[{name: math}]",
        step="rlvr",
    )
    error = ended(run)
    assert isinstance(error, LimitError)
    assert words in error.message
    assert run.status().state == "stopped"
    assert max(row["step"] for row in run.read_metrics()) == 2


def test_data_that_make_no_step_are_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NeMo-RL would end with success."""
    make_tree(tmp_path / "tree", monkeypatch, "fine")
    run = make_run(runs, *STEPS)
    job = run.job()
    rows = tmp_path / "few.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    data = {**job.config["data"], "train": {**job.config["data"]["train"], "data_path": str(rows)}}
    with run.lock():
        run.write_job(CompiledJob.model_validate({**job.model_dump(), "config": {**job.config, "data": data}}))
    assert isinstance(ended(run), DataError)


@pytest.mark.parametrize(
    "words", [(), (f"{JUDGE}.base_url=http://judge:8000/v1",), ("judge.comparison_server=nemo_gym",)]
)
def test_the_judges_key_is_in_no_file_of_a_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The script prints its whole config, as NeMo-RL does."""
    make_tree(tmp_path / "tree", monkeypatch, "fine")
    monkeypatch.setenv("RL_REWARD_API_KEY", "sk-planted-0123456789")
    steps = ("grpo.max_num_steps=1", "checkpointing.save_period=1")
    run = make_run(runs, *steps, *words, step="rlhf", name="nemo_gym")
    with run.lock(), attempt_at(run, **{f"{JUDGE}.api_key": "sk-planted-0123456789"}) as attempt:
        train(attempt)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if b"sk-planted" in path.read_bytes()] == []
    launch = json.loads((run.path / "nemo_rl" / "launch.json").read_text())
    assert launch["environment"] == ["RL_REWARD_API_KEY"]
    assert (run.path / "nemo_rl" / "server.py").is_file() == (words != ("judge.comparison_server=nemo_gym",))


def test_a_secret_reaches_the_process_and_no_file(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "tree", monkeypatch, "fine")
    run = make_run(runs, *STEPS)
    with run.lock(), attempt_at(run, **{"logger.wandb.api_key": "sk-planted-0123456789"}) as attempt:
        train(attempt, patience=Patience(poll_s=0.05))
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert [path for path in files if b"sk-planted" in path.read_bytes()] == []
    launch = json.loads((run.path / "nemo_rl" / "launch.json").read_text())
    assert launch["environment"] == ["NEMOTRON_SECRET_LOGGER_WANDB_API_KEY"]
    assert "${oc.env:NEMOTRON_SECRET_LOGGER_WANDB_API_KEY}" in (run.path / "nemo_rl" / "config.yaml").read_text()


def test_the_engine_is_registered() -> None:
    assert ENGINES["nemo_rl"].name == "nemo_rl"
