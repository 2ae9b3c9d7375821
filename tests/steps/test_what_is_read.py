"""The keys that the schema marks as read by the embedded engine are those that a run of every step reads."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from nemotron.compile.plan import compile_job
from nemotron.config.known import embedded_reads, fields
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.schema.reads import Embedded
from nemotron.job import Asked
from nemotron.manifest import declaration, find_step
from nemotron.runs.folder import RunFolder

pytestmark = [pytest.mark.timeout(600), pytest.mark.full]

RECORDING = Path(__file__).parent / "recording"
WORDS = {
    "rlhf": ("grpo.val_at_end=true", "grpo.max_val_samples=2", "eval.heldout.max_samples=2"),
    "rlvr": ("grpo.val_at_end=true", "grpo.max_val_samples=2", "eval.heldout.max_samples=2"),
    "dpo": ("dpo.val_at_end=true", "dpo.val_batches=1", "eval.heldout.max_samples=2"),
    "sft": ("sft.val_at_end=true", "sft.val_batches=1", "eval.heldout.max_samples=2"),
    "rm": ("rm.val_at_end=true", "rm.val_batches=1", "eval.heldout.max_samples=2"),
    "ppo": ("ppo.val_at_end=true", "ppo.max_val_samples=2", "eval.heldout.max_samples=2"),
}
ELSEWHERE = {
    "engine": "the compile chooses the engine",
    "logger": "off in the tiny configs; tests/steps/test_rlhf_loggers.py turns them on",
    "policy.pretrained_checkpoint.path": "not every tiny config starts from one",
    "policy.model_name": "the others start from a Megatron checkpoint",
    "grpo.normalize_rewards": "the tiny configs have the estimator's own switch",
    "data.default": "the configs for pairs have none",
    "policy.dtensor_cfg.lora_cfg": "adapters are off in the tiny config",
    "policy.dtensor_cfg.activation_checkpointing": "of the two sections the one in use is read; megatron_cfg here",
    "policy.megatron_cfg.activation_checkpointing": "likewise, where dtensor_cfg is in use",
    "policy.reward_model_cfg": "the preflight demands it",
    "env.should_use_nemo_gym": "the preflight demands it",
    "grpo.dynamic_sampling_unit": "read with dynamic sampling only, which the tiny configs leave off",
}


@pytest.fixture(scope="module", params=WORDS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, set[str], Path]:
    """Step, what its worker and the children of that read, and the run: the epoch ends it after one step."""
    step, folder = request.param, tmp_path_factory.mktemp("reads")
    found = find_step(step)
    code = declaration(found)
    section, runs = code.config.section, folder / "runs"
    words = [*WORDS[step], f"{section}.max_num_epochs=1", f"{section}.max_num_steps=1000000"]

    def resolve(*more: str):  # type: ignore[no-untyped-def]
        overrides = parse_overrides(list(enumerate([*words, *more], 5)))
        return load(found.config_dir, "tiny", overrides, run_dir=str(runs / "RUN_ID"), model=code.config)

    values = resolve()
    prompts = values.get(f"{section}.num_prompts_per_step") or values.get("policy.train_global_batch_size")
    data = folder / "rows.jsonl"
    with Path(values.get("data.train.data_path")).open() as rows:
        data.write_text("".join(islice(rows, prompts + 1)))
    resolved = resolve(f"data.train.data_path={data}")
    plan = compile_job(found, resolved, code, runs_dir=runs)
    assert plan.ok, plan.findings
    run = RunFolder.create(runs, plan.job(Asked()))
    with run.lock():
        pass
    env = {**os.environ, "PYTHONPATH": str(RECORDING), "RECORD_READS": str(folder)}
    subprocess.run([sys.executable, "-m", "nemotron.engines.worker", str(run.path)], env=env, check=True, timeout=400)
    return step, {key for path in folder.glob("*.txt") for key in path.read_text().splitlines()}, run.path


def test_every_key_that_is_read_is_marked(recorded: tuple[str, set[str], Path]) -> None:
    step, read, _ = recorded
    model = declaration(find_step(step)).config
    assert {key for key in read if not embedded_reads(model, model.section, key)} == set()


def test_every_key_that_is_marked_is_read(recorded: tuple[str, set[str], Path]) -> None:
    step, read, _ = recorded
    model = declaration(find_step(step)).config
    marked = {key for key, field in fields(model).items() if any(isinstance(one, Embedded) for one in field.metadata)}
    marked = {key for key in marked if embedded_reads(model, model.section, key)}
    unread = {key for key in marked - read if not any(f"{key}.".startswith(f"{one}.") for one in ELSEWHERE)}
    assert unread == set()


def test_the_run_counts_to_the_end_of_its_data(recorded: tuple[str, set[str], Path]) -> None:
    """`max_num_steps` is a million here, as in the shipped configs."""
    status = RunFolder.open(recorded[2]).status()
    assert (status.state, status.steps_done, status.steps_total) == ("finished", 1, 1)
