"""Held-out rows that their check cannot use are found before models are loaded, in every step that answers them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.in_process import nemotron

STEPS = ("rl/nemo_rl/rlhf", "rl/nemo_rl/dpo", "rl/nemo_rl/ppo", "sft/nemo_rl")


def dry_run(step: str, folder: Path, *words: str) -> tuple[int, str]:
    rows = [{"prompt": "How much is 2 + 2?", "answer": "4"}, {"prompt": "Say hello."}]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = "eval.heldout.data_path=own.jsonl"
    done = nemotron("steps", "run", step, "-c", "tiny", own, *words, "--dry-run", cwd=folder)
    return done.code, done.stdout + done.stderr


@pytest.mark.parametrize("step", STEPS)
def test_a_verifier_of_other_rows(step: str, tmp_path: Path) -> None:
    code, said = dry_run(step, tmp_path)
    assert code == 5
    assert "the check `tiny_world` cannot be made on 2 rows of the held-out data" in said
    assert "--> own.jsonl:1" in said


@pytest.mark.parametrize("step", STEPS)
def test_functions_without_what_they_compare_with(step: str, tmp_path: Path) -> None:
    functions = "eval.heldout.rewards={functions: [{name: math}]}"
    code, said = dry_run(step, tmp_path, "~eval.heldout.verifier", functions)
    assert code == 5
    assert "the reward function `math` cannot score a row of the held-out data" in said
    assert "--> own.jsonl:2" in said
