"""Reward model training beside TRL's: the same model and batch give the same loss and gradient.

TRL lives in a venv of its own (tests/integration/trl/install.sh VENV). ``NEMOTRON_TRL_PYTHON`` names its python;
without it, ``build/trl/bin/python`` of the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nemotron
from nemotron.data.rows import PairRow, read_pairs
from nemotron.rl.chat import Chat
from nemotron.rl.reward_loss import reward_model_loss
from nemotron.rl.reward_pairs import from_rows, groups_of
from nemotron.rl.scalar_model import ScalarModel

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TINY = Path(nemotron.__file__).parent / "assets" / "tiny_world"
MODEL = TINY / "reward_model"


@pytest.fixture(scope="session")
def trl_python() -> Path:
    python = Path(os.environ.get("NEMOTRON_TRL_PYTHON", ROOT / "build" / "trl" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"no TRL at {python}; run tests/integration/trl/install.sh build/trl")
    return python


@pytest.fixture(scope="module")
def rows() -> list[PairRow]:
    found = [row for row, _ in zip(read_pairs(TINY / "data/pairs_heldout.jsonl"), range(12), strict=False)]
    return [replace(row, fields={**row.fields, "margin": i / 10}) for i, row in enumerate(found)]


def theirs(python: Path, rows: list[PairRow], centring: float, with_margin: bool, folder: Path) -> dict[str, Any]:
    """What TRL says of the batch."""
    lines = []
    for row in rows:
        pair: dict[str, Any] = {
            side: [*row.messages, {"role": "assistant", "content": text}]
            for side, text in (("chosen", row.chosen), ("rejected", row.rejected))
        }
        lines.append(json.dumps(pair | ({"margin": row.fields["margin"]} if with_margin else {})) + "\n")
    data = folder / "pairs.jsonl"
    data.write_text("".join(lines))
    script = Path(__file__).parent / "trl" / "reward_model_loss.py"
    done = subprocess.run(
        [python, script, MODEL, data, str(centring)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("centring", "with_margin"), [(0.0, False), (0.05, False), (0.05, True)])
def test_loss_and_gradient_are_those_of_trl(
    trl_python: Path, rows: list[PairRow], centring: float, with_margin: bool, tmp_path: Path
) -> None:
    peer = theirs(trl_python, rows, centring, with_margin, tmp_path)
    model = ScalarModel.load(MODEL, device="cpu")
    key = "margin" if with_margin else None
    pairs = from_rows(rows, Chat.load(str(MODEL), "default", None), limit=1000, margin_key=key).pairs
    scores = model.sequence_scores(groups_of(pairs))
    loss, _ = reward_model_loss(
        scores,
        torch.ones_like(scores),
        global_valid_seqs=2.0 * len(pairs),
        margins=torch.tensor([pair.margin for pair in pairs]),
        centring=centring,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(peer["loss"], abs=1e-5)
    grads = {name: p.grad.norm().item() for name, p in model.model.named_parameters() if p.grad is not None}
    assert grads.keys() == peer["gradient_norms"].keys()
    for name, norm in peer["gradient_norms"].items():
        assert grads[name] == pytest.approx(norm, rel=1e-3, abs=1e-5), name
