"""Against the real megatron-core 0.16.1 on CPU, in a venv of its own (tests/integration/megatron/install.sh VENV).

``NEMOTRON_MEGATRON_PYTHON`` names that venv's python; without it, ``build/megatron/bin/python`` of the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from nemotron.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemotron.checkpoints.hf import HfWeights
from nemotron.checkpoints.megatron.describe import describe
from nemotron.checkpoints.policy import load_policy_weights
from tests.unit.checkpoints.families_zoo import CONFIGS, make

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration

# Megatron-Core's own attention for CPU has no sliding window; the weights of that model are those of `mistral`.
FAMILIES = [name for name in CONFIGS if name != "mistral-window"]
LAYOUTS = {
    "tp2-pp2-optimizer": {"tp": 2, "pp": 2, "dp": 1, "what": "optimizer"},
    "dp2-fully-parallel": {"tp": 1, "pp": 1, "dp": 2, "what": "plain"},
    "per-layer": {"tp": 1, "pp": 1, "dp": 1, "what": "per-layer"},
}
# EVERY_LAYOUT=1 in the environment takes apart what the first has all at once.
if os.environ.get("EVERY_LAYOUT"):
    LAYOUTS |= {
        "tp2-optimizer": {"tp": 2, "pp": 1, "dp": 1, "what": "optimizer"},
        "pp2-optimizer": {"tp": 1, "pp": 2, "dp": 1, "what": "optimizer"},
        "tp2-pp2": {"tp": 2, "pp": 2, "dp": 1, "what": "plain"},
    }


@pytest.fixture(scope="session")
def megatron_python() -> Path:
    python = Path(os.environ.get("NEMOTRON_MEGATRON_PYTHON", ROOT / "build" / "megatron" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"no megatron-core at {python}; run tests/integration/megatron/install.sh build/megatron")
    return python


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Name -> Hugging Face folder and the checkpoint made from it."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name in FAMILIES:
        source = make(folder / name / "hf", name)
        hf_to_megatron(source, folder / name / "megatron")
        made[name] = (source, folder / name / "megatron" / "iter_0000000")
    return made


def run(python: Path, folder: Path, job: dict[str, object]) -> str:
    """Run one job of gpt.py; one process (group) for all models, because starting it takes most of the time."""
    script = ROOT / "tests" / "integration" / "megatron" / "gpt.py"
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    done = subprocess.run(
        [python, "-W", "ignore", script, path],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_every_family_loads_strictly_into_the_real_model(
    tmp_path: Path, megatron_python: Path, models: dict[str, tuple[Path, Path]]
) -> None:
    jobs = [{"checkpoint": str(checkpoint), "hf": str(source)} for source, checkpoint in models.values()]
    output = run(megatron_python, tmp_path, {"command": "logits", "models": jobs})
    results = dict(zip(models, json.loads(output.splitlines()[-1]), strict=True))
    print(json.dumps(results, indent=1))
    for name, result in results.items():
        assert result["spread"] > 0.5, name  # logits this far apart show a wrong weight
        assert result["difference"] <= 1e-5, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_what_the_real_one_writes(
    tmp_path: Path, megatron_python: Path, models: dict[str, tuple[Path, Path]], layout: str
) -> None:
    """Sharded over ranks, with or without optimizer state; a vocabulary of 320 rows padded to 384 or 512."""
    chosen = {name: models[name] for name in ("llama", "llama-tied", "llama-mha", "qwen2", "qwen3", "mistral")}
    jobs = [
        {"checkpoint": str(checkpoint), "hf": str(source), "out": str(tmp_path / name)}
        for name, (source, checkpoint) in chosen.items()
    ]
    run(megatron_python, tmp_path, {"command": "save", **LAYOUTS[layout], "models": jobs})
    for name, (source, _) in chosen.items():
        out, original = tmp_path / name, HfWeights(source)
        policy = load_policy_weights(out, hf_config=json.loads((source / "config.json").read_text()))
        checkpoint = describe(out, policy.hf_config)
        assert checkpoint.has_optimizer == ("optimizer" in layout), name
        assert checkpoint.stacked == (layout != "per-layer"), name
        assert set(policy.state) == set(original), name
        assert all(torch.equal(policy.state[weight], original[weight]) for weight in original), name
        megatron_to_hf(out, tmp_path / "back" / name, hf_model=source)
        back = tmp_path / "back" / name / "model.safetensors"
        assert back.read_bytes() == (source / "model.safetensors").read_bytes(), name
