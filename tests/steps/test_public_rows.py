"""The shapes of public files go through `rl_prep`, and then through the step that such rows are made for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.steps.commands import metrics, only_run, run_here, scripted_judge
from tests.unit.data.prep_data import write_rows

pytestmark = pytest.mark.timeout(600)

Row = dict[str, Any]
Shape = Callable[[str, str, str], Row]
"""A row from a question, a good answer and a bad one."""


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def said(speaker: str, text: str) -> Row:
    return {"from": speaker, "value": text}


PROMPTS: dict[str, Shape] = {
    "ShareGPT": lambda q, good, bad: {"id": q, "conversations": [said("human", q), said("gpt", good)]},
    "Alpaca": lambda q, good, bad: {"instruction": q, "input": "", "output": good, "text": f"Below: {q} {good}"},
    "ultrachat": lambda q, good, bad: {"prompt": q, "prompt_id": q, "messages": [user(q), assistant(good)]},
    "LMSYS": lambda q, good, bad: {"conversation": [user(q), assistant(good)], "turn": 1, "language": "English"},
    "question": lambda q, good, bad: {"question": q, "source": "x"},
    "null columns": lambda q, good, bad: {"prompt": None, "messages": [user(q)], "chosen": None, "rejected": None},
}
PAIRS: dict[str, Shape] = {
    "OpenAI": lambda q, good, bad: {
        "input": {"messages": [user(q)], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [assistant(good)],
        "non_preferred_output": [assistant(bad)],
    },
    "chosen_messages": lambda q, good, bad: {
        "chosen_messages": [user(q), assistant(good)],
        "rejected_messages": [user(q), assistant(bad)],
    },
    "labelled": lambda q, good, bad: {"question": q, "response_A": bad, "response_B": good, "label": "B>A"},
    "UltraFeedback": lambda q, good, bad: {
        "prompt": q,
        "messages": [user(q), assistant(good)],
        "chosen": [user(q), assistant(good)],
        "rejected": [user(q), assistant(bad)],
    },
    "Orca": lambda q, good, bad: {"system": "Be polite.", "question": q, "chosen": good, "rejected": bad},
    "Anthropic-HH": lambda q, good, bad: {
        "chosen": f"\n\nHuman: {q}\n\nAssistant: {good}",
        "rejected": f"\n\nHuman: {q}\n\nAssistant: {bad}",
    },
}
SUMS: dict[str, Callable[[int], Row]] = {
    "GSM8K": lambda n: {"question": f"What is {n} + 8?", "answer": f"#### {n + 8}"},
    "MATH500": lambda n: {"problem": f"What is {n} + 8?", "answer": str(n + 8), "level": 1, "unique_id": f"a/{n}"},
    "AIME": lambda n: {"id": n, "problem": f"What is {n} + 8?", "solution": "Add them.", "answer": str(n + 8)},
}
THINGS = ("room", "guitar", "table", "car", "boat", "horse", "bike", "desk")
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")


def rows_of(shapes: dict[str, Shape]) -> list[Row]:
    """Rows of all shapes with different prompts."""
    return [
        shape(f"please book a {thing} for {day} {number}", f"Okay, the {thing} is booked.", "bad")
        for number, shape in enumerate(shapes.values())
        for thing in THINGS
        for day in DAYS
    ]


def prepare(tmp_path: Path, rows: list[Row]) -> Path:
    source = write_rows(tmp_path / "rows.jsonl", rows)
    words = ("--runs-dir", str(tmp_path / "prep"), f"output_dir={tmp_path / 'out'}", "on_reject=error")
    step = ["data_prep/rl_prep", f"blend_path={source}", "split.shares={validation: 0.2}"]
    done = run_here([sys.executable, "-m", "nemotron", "steps", "run", *step, *words])
    assert done.code == 0, done.stderr
    manifest = Path(done.stdout.strip())
    kept = sum(split["rows"] for split in json.loads(manifest.read_text())["splits"].values())
    assert kept == len(rows)
    return manifest


def train(tmp_path: Path, step: str, manifest: Path, *words: str) -> list[Row]:
    """The metrics of a short run of the step on prepared rows."""
    runs = tmp_path / "runs"
    more = (f"data.manifest_path={manifest}", "eval.heldout=null", "checkpointing.enabled=false", *words)
    done = run_here(
        [sys.executable, "-m", "nemotron", "steps", "run", step, "-c", "tiny", "--runs-dir", str(runs), *more]
    )
    assert done.code == 0, done.stderr
    return metrics(only_run(runs))


def test_prompts_are_sampled(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, rows_of(PROMPTS))
    with scripted_judge() as judge:
        assert train(tmp_path, "rl/nemo_rl/rlhf", manifest, *judge, "grpo.max_num_steps=1")


@pytest.mark.parametrize("step", ["dpo", "rm"])
def test_pairs_are_learned_from(tmp_path: Path, step: str) -> None:
    manifest = prepare(tmp_path, rows_of(PAIRS))
    assert json.loads(manifest.read_text())["kind"] == "preference"
    section = {"dpo": "dpo", "rm": "rm"}[step]
    assert train(tmp_path, f"rl/nemo_rl/{step}", manifest, f"{section}.max_num_steps=1", f"{section}.val_period=0")


def test_sums_are_verified(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, [sums(n) for sums in SUMS.values() for n in range(20)])
    assert json.loads(manifest.read_text())["kind"] == "verifier"
    rewards = "rewards.functions=[{name: math, answer_field: answer}]"
    assert train(tmp_path, "rl/nemo_rl/rlvr", manifest, "grpo.max_num_steps=1", rewards)
