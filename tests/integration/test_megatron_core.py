"""Against the real megatron-core 0.16.1 on CPU, in a venv of its own (tests/integration/megatron/install.sh VENV).

Set ``NEMOTRON_MEGATRON_PYTHON`` to that venv's python; by default it is ``build/megatron/bin/python`` of the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "checkpoints"))

from families_zoo import CONFIGS, make  # noqa: E402

from nemotron.checkpoints.convert import hf_to_megatron, megatron_to_hf  # noqa: E402
from nemotron.checkpoints.hf import HfWeights  # noqa: E402
from nemotron.checkpoints.policy import load_policy_weights  # noqa: E402

pytestmark = pytest.mark.integration

# Megatron-Core's own attention for CPU has no sliding window; the weights of that model are those of `mistral`.
FAMILIES = [name for name in CONFIGS if name != "mistral-window"]


@pytest.fixture(scope="session")
def megatron_python() -> Path:
    python = Path(os.environ.get("NEMOTRON_MEGATRON_PYTHON", ROOT / "build" / "megatron" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"no megatron-core at {python}; run tests/integration/megatron/install.sh build/megatron")
    return python


def run(python: Path, *arguments: object) -> str:
    script = ROOT / "tests" / "integration" / "megatron" / "gpt.py"
    done = subprocess.run(
        [python, "-W", "ignore", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def converted(tmp_path: Path, name: str) -> tuple[Path, Path]:
    source = make(tmp_path / "hf", name)
    hf_to_megatron(source, tmp_path / "megatron")
    return source, tmp_path / "megatron" / "iter_0000000"


@pytest.mark.parametrize("name", FAMILIES)
def test_loads_strictly_into_the_real_model(tmp_path: Path, megatron_python: Path, name: str) -> None:
    source, checkpoint = converted(tmp_path, name)
    result = json.loads(run(megatron_python, "logits", checkpoint, source))
    assert result["spread"] > 0.5  # the logits are far apart, so that a wrong weight would show
    assert result["difference"] <= 1e-5 * max(1.0, result["spread"])


@pytest.mark.parametrize("name", ["llama", "llama-mha", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2)])
def test_reads_what_the_real_one_writes(
    tmp_path: Path, megatron_python: Path, name: str, tensor: int, pipeline: int
) -> None:
    """TP=2 or PP=2, with the state of the distributed optimizer; a vocabulary padded from 320 to 512 or 384 rows."""
    source, checkpoint = converted(tmp_path, name)
    out = tmp_path / "real"
    run(megatron_python, "save", checkpoint, source, out, tensor, pipeline, "optimizer")
    assert len(list(out.glob("*.distcp"))) > 1
    config = json.loads((source / "config.json").read_text())
    policy = load_policy_weights(out, hf_config=config)
    assert policy.state.checkpoint.has_optimizer
    original = HfWeights(source)
    assert set(policy.state) == set(original)
    assert all(torch.equal(policy.state[weight], original[weight]) for weight in original)
    megatron_to_hf(out, tmp_path / "back", hf_model=source)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_reads_four_ranks_and_two_copies(tmp_path: Path, megatron_python: Path) -> None:
    """TP=2 x PP=2, and data parallel ranks that share the saving."""
    source, checkpoint = converted(tmp_path, "llama")
    original = HfWeights(source)
    for tensor, pipeline, data in ((2, 2, 1), (1, 1, 2)):
        out = tmp_path / f"real{tensor}{pipeline}{data}"
        run(megatron_python, "save", checkpoint, source, out, tensor, pipeline, "plain", data)
        policy = load_policy_weights(out, hf_config=json.loads((source / "config.json").read_text()))
        assert not policy.state.checkpoint.has_optimizer
        assert all(torch.equal(policy.state[weight], original[weight]) for weight in original)


def test_reads_a_key_per_layer(tmp_path: Path, megatron_python: Path) -> None:
    """What Megatron-Core writes for models whose layers differ."""
    source, checkpoint = converted(tmp_path, "qwen3")
    out = tmp_path / "real"
    run(megatron_python, "save", checkpoint, source, out, 1, 1, "per-layer")
    policy = load_policy_weights(out, hf_config=json.loads((source / "config.json").read_text()))
    assert not policy.state.checkpoint.stacked
    original = HfWeights(source)
    assert all(torch.equal(policy.state[weight], original[weight]) for weight in original)
