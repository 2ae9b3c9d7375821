"""Every file of a run that was killed and went on is that of one that nobody killed: no state is in memory alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.steps.commands import kill_when, only_run, run_command, run_here

pytestmark = pytest.mark.timeout(900)

COMMON = ("checkpointing.save_period=2", "checkpointing.keep_top_k=null", "checkpointing.save_consolidated=true")
GRPO = ("grpo.max_num_steps=4", "eval.heldout.max_samples=8")
STEPS: Mapping[str, tuple[str, ...]] = {
    "rlvr": GRPO,
    "rlhf": GRPO,
    # The reference scores all pairs before the first step.
    "dpo": (
        *("dpo.max_num_steps=4", "eval.heldout.max_samples=8", "dpo.val_batches=1"),
        "data.train.data_path=${asset:tiny_world/data/pairs_heldout.jsonl}",
    ),
    "sft": ("sft.max_num_steps=4", "eval.heldout.max_samples=8", "sft.val_batches=1"),
    "rm": (
        *("rm.max_num_steps=4", "eval.heldout.max_samples=8", "rm.val_batches=1"),
        "bradley_terry.statistics_pairs=16",
    ),
    "ppo": ("ppo.max_num_steps=4", "eval.heldout.max_samples=8"),
}
NOT_COMPARED = re.compile(r"(attempts/.*|run\.lock|checkpoints/\.owner\.lock|report\.html)$")
"""Logs and handles of attempts, locks, and the page, which is made of the other files and of times."""
TIMES_AND_NAMES = re.compile(
    r"pid|id|folder|run|host|created|created_at|started_at|updated_at|finished_at|asked|provenance|wall_s|time|timing/.*|"
    r".*(_s|_time|_seconds|per_second|per_sec|per_s)(/.*)?"
)
"""Keys of what two runs of the same job never share."""


def plain(value: Any, own: Mapping[str, str]) -> Any:
    """Parsed JSON without times and names, the run's own paths written alike."""
    if isinstance(value, dict):
        return {name: plain(child, own) for name, child in value.items() if not TIMES_AND_NAMES.fullmatch(name)}
    if isinstance(value, list):
        return [plain(child, own) for child in value]
    return named_alike(value, own) if isinstance(value, str) else value


def named_alike(text: str, own: Mapping[str, str]) -> str:
    for name, shown in own.items():
        text = text.replace(name, shown)
    return text


def files_of(run: Path) -> dict[str, Any]:
    """Relative name -> content of every file, as far as two runs of one job share it."""
    own = {str(run): "RUN", str(run.parent): "RUNS", run.name: "ID"}
    found: dict[str, Any] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if NOT_COMPARED.fullmatch(name):
            continue
        if path.suffix == ".jsonl":
            rows = [plain(json.loads(line), own) for line in path.read_text().splitlines()]
            # Answers are written as they are scored.
            found[name] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_bytes()), own)
        elif path.suffix == ".yaml":
            found[name] = named_alike(path.read_text(), own)
        else:
            found[name] = path.read_bytes()
    return found


def killed_after_step_3(runs: Path) -> bool:
    found = list(runs.glob("*/metrics.jsonl"))
    # The last line may be half written.
    whole = found[0].read_text().rpartition("\n")[0].splitlines() if found else []
    return any(json.loads(line)["step"] == 3 for line in whole)


OWN_THREADS = ("rlhf",)
"""With a judge that takes some of them, and all in processes of their own. The others compute with one, and are forks:
that costs a fraction."""


@pytest.mark.full
@pytest.mark.parametrize("step", STEPS)
def test_every_file_of_a_killed_and_resumed_run_is_the_undisturbed_ones(
    tmp_path: Path, step: str, request: pytest.FixtureRequest
) -> None:
    go = run_command if step in OWN_THREADS else run_here
    if step in OWN_THREADS:
        request.getfixturevalue("own_threads")
    commands = {}
    for name in ("whole", "killed"):
        commands[name] = [*run_of(step), "--runs-dir", str(tmp_path / name), *COMMON, *STEPS[step]]
    result = go(commands["whole"])
    assert result.code == 0, result.stderr
    assert kill_when(commands["killed"], lambda: killed_after_step_3(tmp_path / "killed")) == -9
    resumed = go([*commands["killed"], "--resume"])
    assert resumed.code == 0, resumed.stderr
    whole, killed = (files_of(only_run(tmp_path / name)) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    different = {name for name in whole if whole[name] != killed[name]}
    assert not different, {name: (whole[name], killed[name]) for name in different if isinstance(whole[name], dict)}
    for checkpoint in ("step_2", "step_4"):
        assert any(name.startswith(f"checkpoints/{checkpoint}/policy/") for name in whole)
        assert f"checkpoints/{checkpoint}/policy/weights/hf/generation_config.json" in whole


def run_of(step: str) -> list[str]:
    return [sys.executable, "-m", "nemotron", "steps", "run", step, "-c", "tiny"]
