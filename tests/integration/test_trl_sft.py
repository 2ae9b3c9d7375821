"""Supervised fine-tuning beside TRL's: the same model and batch give the same loss, tokens and gradient.

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

from nemotron.data.conversations import read_conversations
from nemotron.rl.chat import Chat
from nemotron.rl.conversations import Writing, tokenise
from nemotron.rl.loops.sft import forward
from nemotron.rl.policy import Policy
from tests.integration.test_trl_dpo import TINY, trl_python  # noqa: F401

pytestmark = pytest.mark.integration


def rows(folder: Path) -> Path:
    """Conversations of one and of several turns, as prompt and completion."""
    made = []
    for line in (TINY / "data/pairs_train.jsonl").read_text().splitlines()[:12]:
        pair = json.loads(line)
        answer = [{"role": "assistant", "content": pair["chosen"]}]
        prompt = pair["prompt"]
        if len(made) % 3 == 2:
            prompt = [*prompt, {"role": "assistant", "content": pair["rejected"]}, *prompt]
        made.append({"prompt": prompt, "completion": answer})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def theirs(python: Path, data: Path) -> dict[str, Any]:
    script = Path(__file__).parent / "trl" / "sft_loss.py"
    done = subprocess.run(
        [python, script, TINY / "policy", data],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_loss_and_gradient_are_those_of_trl(trl_python: Path, tmp_path: Path) -> None:  # noqa: F811
    data = rows(tmp_path)
    peer = theirs(trl_python, data)
    policy = Policy.load(TINY / "policy", device="cpu")
    # TRL learns the completion alone, from where sampling begins.
    writing = Writing(Chat.load(str(TINY / "policy"), "default", None), generation_prompt=True, only_last=True)
    found, refused = tokenise(read_conversations(data), writing, limit=1000)
    assert not refused
    tokens = sum(sum(row.learned) for row in found)
    assert tokens == peer["tokens"]
    loss, _, _ = forward(policy, found, tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad.norm().item() for name, p in policy.model.named_parameters() if p.grad is not None}
    assert loss.item() == pytest.approx(peer["loss"], abs=1e-5)
    assert grads.keys() == peer["gradient_norms"].keys()
    for name, norm in peer["gradient_norms"].items():
        assert grads[name] == pytest.approx(norm, rel=1e-3, abs=1e-5), name
