"""The product from Python: the same plans, runs and errors as on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemotron import api
from nemotron.errors import CompileError, ConfigError, NotFoundError, UsageError
from tests import forked
from tests.in_process import nemotron

TWO = {
    **{"dpo.max_num_steps": 2, "eval.heldout.max_samples": 8, "checkpointing.save_period": 2},
    "data.train.data_path": "${asset:tiny_world/data/pairs_heldout.jsonl}",
}


@pytest.fixture(autouse=True, scope="module")
def runs_are_forks() -> Iterator[None]:
    """Those of a script, which is a process of its own, are not."""
    with forked.apart():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    return api.run("dpo", "tiny", TWO, runs_dir=tmp_path_factory.mktemp("api") / "runs", progress=False)


def test_a_plan_is_the_one_of_the_dry_run(tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in TWO.items()]
    told = nemotron("steps", "run", "dpo", "-c", "tiny", *words, "--dry-run", "--json", cwd=tmp_path)
    by_words = api.compile("dpo", "tiny", words, runs_dir=tmp_path / "runs")
    by_values = api.compile("dpo", "tiny", TWO, runs_dir=tmp_path / "runs")
    assert by_words.ok
    assert by_words.fingerprint == by_values.fingerprint == json.loads(told.stdout)["fingerprint"]
    assert list(tmp_path.iterdir()) == []


def test_paths_and_numbers_of_numpy_are_values(tmp_path: Path) -> None:
    words = {"dpo.seed": 3, "dpo.sft_loss_weight": 0.5, "data.train.data_path": str(tmp_path / "a.jsonl")}
    values = {**words, "dpo.seed": np.int64(3), "dpo.sft_loss_weight": np.float32(0.5)}
    values["data.train.data_path"] = tmp_path / "a.jsonl"
    own = tmp_path / "own.yaml"
    own.write_text("defaults: tiny\n")
    plans = [api.compile("dpo", own, given, runs_dir=tmp_path / "runs") for given in (words, values)]
    assert plans[0].fingerprint == plans[1].fingerprint


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", np.arange(2), [1, {"a": 1j}]])
def test_a_value_that_no_config_holds_is_refused_by_its_key(value: object) -> None:
    with pytest.raises(ConfigError, match=r"`dpo\.seed[.01a]*` cannot be set to a \w+"):
        api.compile("dpo", "tiny", {"dpo.seed": value})


def test_a_run_says_everything_that_its_folder_knows(run: api.Run) -> None:
    assert (run.state, run.error, run.exit_code) == ("finished", None, 0)
    assert [row["step"] for row in run.metrics if "train/loss" in row] == [1, 2]
    assert run.heldout["before"] is not None
    assert run.heldout["after"] is not None
    assert run.artifacts["checkpoint_run"] == run.path / "checkpoints" / "step_2"
    assert run.report == run.path / "report.html"
    assert run.summary["steps"] == 2
    assert api.open_run("last", runs_dir=run.path.parent).id == run.id
    assert api.resume(run.id, runs_dir=run.path.parent).state == "finished"


def test_progress_is_said_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = api.run("megatron_to_hf", "tiny", {"verify": "none"}, runs_dir=tmp_path / "runs")
    assert capsys.readouterr().out.splitlines()[-1] == f"{found.id}: finished"


def test_mistakes_raise_what_the_command_would_print(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        api.run("dpo", "tiny", {"dpo.max_num_stesp": 2}, runs_dir=tmp_path / "runs")
    (finding,) = (one for one in caught.value.findings if one.severity == "error")
    assert finding.key == "dpo.max_num_stesp"
    assert str(finding.origin) == "Python"
    assert not api.compile("dpo", "tiny", ["policy.precision=float31"], runs_dir=tmp_path).ok
    with pytest.raises(NotFoundError):
        api.compile("dop")
    with pytest.raises(UsageError):
        api.compile("dpo", "tiny", ["seed"])
    with pytest.raises(NotFoundError):
        api.Pipeline("pop").compile()
    assert list(tmp_path.iterdir()) == []


def test_a_word_of_a_list_is_placed_in_it() -> None:
    with pytest.raises(UsageError) as caught:
        api.compile("dpo", "tiny", ["dpo.seed=3", "dpo.seed 4"])
    assert str(caught.value.origin) == "Python, argument 2"


@pytest.mark.parametrize("overrides", [None, 3, [3], "dpo.seed=3", b"dpo.seed=3"])
def test_overrides_of_another_form_are_told_the_forms_there_are(overrides: Any) -> None:
    with pytest.raises(UsageError, match="mapping or a list of words") as caught:
        api.compile("dpo", "tiny", overrides)
    assert '["dpo.seed=3"]' in str(caught.value.hint)


@pytest.mark.parametrize("named", [{"step": None}, {"config": None}, {"config": 3}, {"runs_dir": None}])
def test_what_is_no_name_is_told_by_the_name_of_its_argument(named: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"`{next(iter(named))}` should be a text or a path"):
        api.compile(**{"step": "dpo", "config": "tiny", **named})
    with pytest.raises(UsageError, match="`name` should be"):
        api.Pipeline(None).compile()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`name` should be"):
        api.resume(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [{"side_by_side": 0}, {"side_by_side": -1}, {"side_by_side": 1.5}, {"force": "rm"}])
def test_a_pipeline_of_which_no_node_could_work_is_refused_before_anything_is_written(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    """With no node at once it would wait for ever."""
    with pytest.raises(UsageError, match=next(iter(asked))):
        api.Pipeline("ppo", runs_dir=tmp_path / "runs").run(**asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_pipeline_from_python(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "nodes:\n"
        "  mega: {step: hf_to_megatron, config: tiny, overrides: {verify: none}}\n"
        "  back: {step: megatron_to_hf, takes: {checkpoint_megatron: mega}}\n"
    )
    pipeline = api.Pipeline(str(tmp_path / "two.yaml"), {"back.verify": "none"}, tmp_path / "runs")
    assert [node.name for node in pipeline.compile().nodes] == ["mega", "back"]
    done = pipeline.run()
    assert done.states == {"mega": "finished", "back": "finished"}
    assert (done.runs["back"].artifacts["checkpoint_hf"] / "config.json").is_file()
    assert pipeline.run().states == {"mega": "reused", "back": "reused"}
    assert api.PipelineRun.open(runs_dir=tmp_path / "runs").resume().states == {"mega": "reused", "back": "reused"}
    assert done.report.is_file()


@pytest.mark.full
def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """What a run starts must not begin by importing the script, which would start everything again."""
    (tmp_path / "script.py").write_text(
        "from nemotron import api\n"
        "print('script', __name__)\n"
        "run = api.run('megatron_to_hf', 'tiny', {'verify': 'none'}, runs_dir='runs')\n"
        "print('done', run.state)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert (said[0], said[-1]) == ("script __main__", "done finished")
    assert sum(line.startswith("script") for line in said) == 1
    assert len([path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]) == 1
