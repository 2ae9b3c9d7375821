"""What a person sees after each mistake, whole: exit code, stdout, stderr.

Read the snapshots as a reviewer of prose would; update them with `pytest tests/cli --snapshot-update`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.in_process import nemotron

ENDPOINT = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.base_url=http://localhost:1/v1"
RUN = ("steps", "run", "rl/nemo_rl/rlhf", "-c", "tiny", "--dry-run")


@pytest.mark.parametrize(
    "words",
    [
        "steps run rlhff",
        "steps show rl/nemo_rl/rlfh",
        "steps run nothing/like/it",
        "steps run rlhf -c tinny",
        "steps run rlhf -c gone.yaml",
        "steps run rlhf -c",
        "steps list --category lr",
        "steps list --consumes checkpoint_hff",
        "steps list --produces nothing",
        "steps list --tag rhlf",
        "artifacts list --type checkpoint-hf",
        "steps lst",
        "stps list",
        "steps show",
    ],
)
def test_wrong_names(run: Callable[..., str], snapshot: SnapshotAssertion, words: str) -> None:
    assert run(*words.split()) == snapshot


@pytest.mark.parametrize(
    "words",
    [
        "steps run rlhf --dryrun",
        "steps run rlhf --grpo.max_num_steps=3",
        "steps run rlhf --grpo.max_num_steps 3",
        "steps run rlhf --stage",
        "steps run rlhf -x",
        "steps run rlhf dryrun",
        "steps run rlhf -c tiny train.yaml",
        "steps run rlhf -r one -b two",
        "steps run rlhf --json",
        "steps run rlhf --force-squash",
        "steps run rlhf --resume --dry-run",
        "--dry-run steps run rlhf",
        "steps --config tiny run rlhf",
        "steps list --jsn",
        "--verbose",
    ],
)
def test_wrong_flags(run: Callable[..., str], snapshot: SnapshotAssertion, words: str) -> None:
    assert run(*words.split()) == snapshot


@pytest.mark.parametrize(
    "words",
    [
        ["grpo.num_generation_per_prompt=4"],
        ["grpo.max_num_steps=abc"],
        ["grpo.max_num_steps=-3"],
        ["grpo=3"],
        ["data.foo=[1,2"],
        ["grpo.max_num_steps="],
        ["policy.optimizer.kwargs=[1]"],
        ["loss_fn.reference_policy_kl_type=k4"],
        ["+grpo.seed=1"],
        ["~grpo.seed"],
        ["grpo.seed=1", "grpo.seed=2"],
        ["policy.generation.vllm_kwargs.seed=1"],
        ["policy.model_name=${oc.env:NOT_SET_ANYWHERE}"],
        ["policy.model_name=${polcy.precision}"],
        ["policy.model_name=${artifact:policy}"],
        ["env.nemo_gym.genrm_model.responses_api_models.vllm_model.api_key=31337"],
        ["grpo.sed=1", "policy.precision=fp32", "judge.threads=many", "~data.train"],
        ["policy.train_global_batch_size=7"],
        ["data.train.data_path=few.jsonl"],
        ["data.train.data_path=gone.jsonl"],
        ["policy.model_name=./gone"],
        ["-r", "cluster"],
        ["--", "--extra", "word"],
    ],
    ids=" ".join,
)
def test_wrong_config(run: Callable[..., str], snapshot: SnapshotAssertion, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "hi"}\n' * 3)
    assert run(*RUN, *words) == snapshot


@pytest.mark.parametrize(
    "words",
    [
        "rlhf policy.optimizer.kwargs.lr=fast",
        "rlhf ~policy.optimizer",
        "rlhf policy.train_micro_batch_size=0",
        "rlhf policy.model_name=empty",
        "dpo data.train.data_path=broken.jsonl",
        "rlvr data.train.data_path=pairs.jsonl",
        "ppo reward_model.model_name=./gone",
        "rm data.validation=null",
    ],
)
def test_one_cause_is_one_error(
    run: Callable[..., str], snapshot: SnapshotAssertion, words: str, tmp_path: Path
) -> None:
    """What follows from a mistake is not said beside it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text("not json\n" * 80)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "hi", "chosen": "a", "rejected": "b"}\n' * 80)
    step, *rest = words.split()
    said = run("steps", "run", step, "-c", "tiny", "--dry-run", *rest)
    assert "error: 1 problem found, nothing was started" in said
    assert said == snapshot


BROKEN_FILES = {
    "broken": "defaults: tiny\ngrpo:\n  seed: [1, 2\npolicy:\n  precision: float32\n",
    "tab": "grpo:\n\tseed: 1\n",
    "duplicate": "defaults: tiny\ngrpo:\n  seed: 1\ngrpo:\n  seed: 2\n",
    "list": "- grpo\n- policy\n",
    "empty": "# nothing yet\n",
    "no defaults": "grpo:\n  seed: 1\n",
    "misspelt": "defaults: tiny\ngrpo:\n  num_generation_per_prompt: 4\n  seed: ten\n",
    "hydra defaults": "defaults:\n  - base: tiny\n",
    "unknown defaults": "defaults: tinny\n",
    "circle": "defaults: own.yaml\n",
    "nested override": "defaults: tiny\npolicy:\n  optimizer:\n    _override_: true\n",
    "latin 1": "name: caf\xe9\n",
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_wrong_yaml(run: Callable[..., str], snapshot: SnapshotAssertion, tmp_path: Path, name: str) -> None:
    (tmp_path / "own.yaml").write_text(BROKEN_FILES[name], encoding="latin-1")
    assert run("steps", "run", "rlhf", "-c", "own.yaml", "--dry-run") == snapshot


def test_json_plan_of_a_job_that_would_not_start(tmp_path: Path) -> None:
    result = nemotron(*RUN, "--json", "grpo.max_num_steps=0", cwd=tmp_path, bare=True)
    plan = json.loads(result.stdout)
    assert result.code == plan["exit_code"] == 3
    assert [finding["name"] for finding in plan["findings"]] == ["out-of-range"]


def test_runs_folder_that_cannot_be_written(
    run: Callable[..., str], snapshot: SnapshotAssertion, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert run("steps", "run", "rlhf", "-c", "tiny", "--runs-dir", "file") == snapshot


@pytest.mark.parametrize("words", ["rl_prep", "dpo", "reward_audit " + ENDPOINT])
def test_no_data_of_ones_own(run: Callable[..., str], snapshot: SnapshotAssertion, words: str) -> None:
    """The shipped sample lets every default run; that it is used must be seen before anything starts."""
    step = words.split()[0]
    said = run("steps", "run", *words.split(), "--dry-run", HF_HUB_CACHE="nowhere")
    assert "warning: no " in said
    _, _, findings = said.partition("----- stderr")
    assert readable_findings(findings) == snapshot
    assert "sample of the tiny world" not in run("steps", "run", step, "-c", "tiny", "--dry-run")


def readable_findings(text: str) -> str:
    """Findings without the notes, which depend on the machine."""
    blocks = [block for block in text.strip().split("\n\n") if not block.startswith("note:")]
    return "\n\n".join(blocks)
