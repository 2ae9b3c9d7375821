"""Random damage to the files of a checkpoint: an answer in words or the right weights, never a crash."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemotron.checkpoints.convert import hf_to_megatron
from nemotron.checkpoints.megatron.pickles import loads
from nemotron.checkpoints.policy import load_policy_weights
from nemotron.errors import ArtifactError
from tests.unit.checkpoints.families_zoo import make


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    source = make(folder / "hf", "llama")
    hf_to_megatron(source, folder / "megatron")
    return source, folder / "megatron" / "iter_0000000"


def damaged(content: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled, or the end cut off."""
    at, size = dice.randrange(len(content)), dice.choice([1, 1, 2, 8, 100])
    what = dice.randrange(4)
    if what == 0:
        return content[:at] + dice.randbytes(size) + content[at + size :]
    if what == 1:
        return content[:at] + content[at + size :]
    if what == 2:
        return content[:at] + content[at : at + size] + content[at:]
    return content[:at]


@pytest.mark.parametrize("times", [50, pytest.param(150, marks=pytest.mark.full)])
@pytest.mark.parametrize("file", [".metadata", "common.pt", "run_config.yaml", "metadata.json", "__0_0.distcp"])
def test_random_damage(models: tuple[Path, Path], tmp_path: Path, file: str, times: int) -> None:
    source, iteration = models
    original = load_policy_weights(source)
    copy = tmp_path / "copy"
    shutil.copytree(iteration, copy)
    content = (iteration / file).read_bytes()
    refused = 0
    for seed in range(times):
        (copy / file).write_bytes(damaged(content, random.Random(seed)))
        try:
            policy = load_policy_weights(copy)
            read = {name: policy.state[name] for name in policy.state}
        except ArtifactError:
            refused += 1
            continue
        # Damage in padding, zip headers or names that are not used changes nothing that matters.
        assert set(read) == set(original.state), seed
        assert all(torch.equal(weight, original.state[name]) for name, weight in read.items()), seed
    assert refused > times // 8


@pytest.mark.full
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Anonymous memory of both directions, for 13 MB and 105 MB of weights: a few megabytes either way."""
    benchmarks = Path(__file__).parents[3] / "benchmarks"
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(benchmarks)!r})
import megatron_checkpoint as bench
from nemotron.checkpoints import convert
for layers in (4, 32):
    sizes = {{"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1024}}
    bench.SIZES["x"] = {{**sizes, "num_hidden_layers": layers}}
    folder = Path({str(tmp_path)!r}) / str(layers)
    bench.make_model(folder / "hf", "x")
    for step, run in (("hf", convert.hf_to_megatron), ("megatron", convert.megatron_to_hf)):
        target = folder / ("megatron" if step == "hf" else "back")
        found = bench.measured(lambda: run(folder / step, target, verify="weights"))
        print(layers, step, found["anon_mb"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    peaks = [float(line.split()[2]) for line in done.stdout.splitlines()]
    assert len(peaks) == 4
    assert max(peaks[2:]) < 20, done.stdout


@pytest.mark.parametrize("content", [b"\x80\x02]r\xff\xff\xff\x7f.", b"]p2000000000\n."], ids=["binary", "text"])
def test_a_number_of_an_object_takes_no_gigabytes(tmp_path: Path, content: bytes) -> None:
    """The standard library's reader has a table as long as the largest number."""
    with pytest.raises(ArtifactError, match="objects cannot be in"):
        loads(content, tmp_path / ".metadata")
