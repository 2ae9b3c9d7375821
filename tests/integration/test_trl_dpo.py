"""DPO beside TRL's: the same model, reference and batch give the same loss and gradient.

TRL lives in a venv of its own (tests/integration/trl/install.sh VENV). ``NEMOTRON_TRL_PYTHON`` names its python;
without it, ``build/trl/bin/python`` of the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import nemotron
from nemotron.config.schema.dpo import DpoLossConfig
from nemotron.data.rows import PairRow, read_pairs
from nemotron.rl.chat import Chat
from nemotron.rl.pairs import answer_mask, tokenise
from nemotron.rl.policy import Policy
from nemotron.rl.preference import dpo_loss

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TINY = Path(nemotron.__file__).parent / "assets" / "tiny_world"
BETA = 0.1


@pytest.fixture(scope="session")
def trl_python() -> Path:
    python = Path(os.environ.get("NEMOTRON_TRL_PYTHON", ROOT / "build" / "trl" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"no TRL at {python}; run tests/integration/trl/install.sh build/trl")
    return python


@pytest.fixture(scope="module")
def rows() -> list[PairRow]:
    return [row for row, _ in zip(read_pairs(TINY / "data/pairs_train.jsonl"), range(12), strict=False)]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has left its reference: the shipped one with noise on every weight."""
    policy = Policy.load(TINY / "policy", device="cpu")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("policy")
    policy.model.save_pretrained(folder)
    Chat.load(str(TINY / "policy"), "default", None).tokenizer.save_pretrained(folder)
    return folder


def theirs(python: Path, policy: Path, rows: list[PairRow], folder: Path) -> dict[str, Any]:
    """What TRL says of the batch."""
    lines = []
    for row in rows:
        answers = {
            side: [{"role": "assistant", "content": text}]
            for side, text in (("chosen", row.chosen), ("rejected", row.rejected))
        }
        lines.append(json.dumps({"prompt": row.messages, **answers}) + "\n")
    data = folder / "pairs.jsonl"
    data.write_text("".join(lines))
    script = Path(__file__).parent / "trl" / "dpo_loss.py"
    done = subprocess.run(
        [python, script, policy, TINY / "policy", data, str(BETA)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(folder: Path, rows: list[PairRow]) -> tuple[float, dict[str, float]]:
    """Loss of the batch, and the norm of its gradient by weight."""
    policy, reference = Policy.load(folder, device="cpu"), Policy.load(TINY / "policy", device="cpu")
    pairs, _ = tokenise(rows, Chat.load(str(folder), "default", None), limit=1000)
    groups = [pair.group for pair in pairs]
    with torch.no_grad():
        before = reference.response_logprobs(groups)
    logprobs = policy.response_logprobs(groups)
    loss, _ = dpo_loss(
        logprobs,
        before,
        answer_mask(groups, logprobs.shape[1]),
        torch.ones(2 * len(pairs)),
        DpoLossConfig(reference_policy_kl_penalty=BETA),
        global_valid_seqs=2.0 * len(pairs),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad.norm().item() for name, p in policy.model.named_parameters() if p.grad is not None}
    return loss.item(), grads


def test_loss_and_gradient_are_those_of_trl(trl_python: Path, moved: Path, rows: list[PairRow], tmp_path: Path) -> None:
    peer = theirs(trl_python, moved, rows, tmp_path)
    loss, grads = ours(moved, rows)
    assert loss != pytest.approx(0.6931, abs=1e-3), "the policy has left its reference"
    assert loss == pytest.approx(peer["loss"], abs=1e-5)
    assert grads.keys() == peer["gradient_norms"].keys()
    for name, norm in peer["gradient_norms"].items():
        assert grads[name] == pytest.approx(norm, rel=1e-3, abs=1e-5), name
