"""`steps run --sweep` before anything starts: what is printed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron.config import resolvers
from tests.in_process import nemotron

TINY = ("steps", "run", "rlhf", "-c", "tiny")
Run = Callable[..., str]
ASSET = "${asset:tiny_world/data/train.jsonl}"
TRAIN = str(resolvers.ASSETS / "tiny_world" / "data" / "train.jsonl")


def test_the_dry_run_is_one_plan_and_the_table_of_runs(run: Run) -> None:
    said = run(*TINY, "--sweep", "grpo.seed=1,2", "--sweep=policy.optimizer.kwargs.lr=1e-6,3e-6", "-d")
    assert said.count("fingerprint ") == 1
    table = said[said.index("--- sweep of 4 runs") : said.index("----- stderr")]
    assert [line.split()[:3] for line in table.strip().splitlines()[1:]] == [
        ["RUN", "grpo.seed", "policy.optimizer.kwargs.lr"],
        ["1", "1", "1e-06"],
        ["2", "1", "3e-06"],
        ["3", "2", "1e-06"],
        ["4", "2", "3e-06"],
    ]
    # What all runs share is said once.
    assert said.count("note: settings of a cluster") == 1


def test_json_has_every_plan(tmp_path: Path) -> None:
    done = nemotron(*TINY, "--sweep", "grpo.seed=1,2", "-d", "--json", cwd=tmp_path, bare=True)
    plans = json.loads(done.stdout)["sweep"]
    assert [(plan["values"], plan["config"]["grpo"]["seed"]) for plan in plans] == [
        ({"grpo.seed": "1"}, 1),
        ({"grpo.seed": "2"}, 2),
    ]


def test_one_wrong_run_refuses_all_and_is_named(run: Run) -> None:
    said = run(*TINY, "--sweep", "grpo.max_num_steps=0,3", "--sweep", "grpo.seed=1,2")
    assert "exit code: 3" in said
    assert "with `grpo.max_num_steps=0 grpo.seed=1`, `grpo.max_num_steps=0 grpo.seed=2`)" in said
    assert "grpo.max_num_steps=3" not in said
    assert "nothing was started" in said


def test_what_is_wrong_with_all_names_none(run: Run) -> None:
    said = run(*TINY, "grpo.sed=1", "--sweep", "grpo.seed=1,2")
    assert "unknown key `grpo.sed`" in said
    assert "(with" not in said
    assert "(with" not in run("steps", "run", "rlhf", "-c", "gone", "--sweep", "grpo.seed=1,2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--explain", "grpo.seed"), "explains the config of one run"),
        (("--only", "actor"), "runs as a whole"),
        (("-b", "local"), "would start all 2 runs at once"),
        (("-d", "checkpointing.checkpoint_dir=here"), "would both write `here` (checkpointing.checkpoint_dir)"),
    ],
)
def test_what_goes_with_no_sweep(run: Run, words: tuple[str, ...], message: str) -> None:
    said = run(*TINY, *words, "--sweep", "grpo.seed=1,2")
    assert "exit code: 2" in said
    assert message in said


def test_two_names_of_one_job_are_refused(run: Run) -> None:
    """The second run would do the first one's work again."""
    said = run(*TINY, "-d", "--sweep", f'data.train.data_path={TRAIN},"{ASSET}"')
    assert "exit code: 2" in said
    assert "make the same job" in said


def test_a_secret_is_not_swept(run: Run) -> None:
    key = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.api_key"
    said = run(*TINY, "-d", "--sweep", f"{key}=first-secret-1,second-secret-2")
    assert "which cannot be swept" in said
    assert "first-secret" not in said
    assert "second-secret" not in said
