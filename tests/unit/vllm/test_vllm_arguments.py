"""What vLLM is started with, where its program is, and what is read from its log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.resolvers import ASSETS
from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.judge.vllm import serve_judge
from nemotron.place import Place
from nemotron.vllm.arguments import Serve, cpu_cache, flags, gpus
from nemotron.vllm.log import cause, last_words
from nemotron.vllm.where import program_at, program_here, visible_gpus

JUDGE = str(ASSETS / "tiny_world" / "judge")
CPU = Place(memory_bytes=16 << 30)
GPU = replace(CPU, has_cuda=True)


def test_settings_become_words() -> None:
    settings = {
        **{"max_model_len": 512, "enforce_eager": True, "enable_prefix_caching": False, "quantization": None},
        **{"served": ["a", "b"], "structured_outputs_config": {"backend": "xgrammar"}, "gpu_memory_utilization": 0.9},
    }
    assert flags(settings) == [
        *("--max-model-len", "512", "--enforce-eager", "--no-enable-prefix-caching", "--served", "a", "b"),
        *("--structured-outputs-config", '{"backend": "xgrammar"}', "--gpu-memory-utilization", "0.9"),
    ]
    words = Serve(Path("/v/bin/vllm"), "m", "judge", {}).argv("--host", "127.0.0.1", "--port", "8")
    assert words == ["/v/bin/vllm", "serve", "m", "--served-model-name", "judge", "--host", "127.0.0.1", "--port", "8"]
    assert gpus({"tensor_parallel_size": 2, "data_parallel_size": 3, "pipeline_parallel_size": None}) == 6


def started(place: Place, *, beside: bool = True, environ: dict[str, str] | None = None, **said: Any) -> Serve:
    config = JudgeConfig.model_validate({name: said.pop(name) for name in ("dtype", "threads") if name in said})
    block = GenrmModelConfig.model_validate({"model": JUDGE, **said})
    return serve_judge(block, config, Path("vllm"), place, beside_policy=beside, environ=environ or {})


def test_on_a_processor_it_is_small_and_eager() -> None:
    serve = started(CPU, threads=3)
    assert serve.settings | {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 64} == serve.settings
    assert serve.settings["kv_cache_memory_bytes"] == 64 << 20
    assert serve.variables["OMP_NUM_THREADS"] == "3"
    # All of it lies in a folder: nothing is asked of the network.
    assert serve.variables["HF_HUB_OFFLINE"] == "1"
    assert "gpu_memory_utilization" not in serve.settings


def test_what_the_block_says_is_stronger() -> None:
    serve = started(
        CPU,
        vllm_serve_kwargs={"max-num-seqs": 4, "dtype": "bfloat16", "structured_outputs_config": None},
        vllm_serve_env_vars={"OMP_NUM_THREADS": "7", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    )
    words = flags(serve.settings)
    assert words[words.index("--max-num-seqs") + 1] == "4"
    assert words.count("--max-num-seqs") == 1
    assert words[words.index("--dtype") + 1] == "bfloat16"
    assert "--structured-outputs-config" not in words
    assert (serve.variables["OMP_NUM_THREADS"], serve.variables["VLLM_ENABLE_V1_MULTIPROCESSING"]) == ("7", "1")


def test_gpus_of_its_own_where_there_are_enough() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4,5,6"}
    two = {"tensor_parallel_size": 2}
    assert started(GPU, environ=environ, vllm_serve_kwargs=two).variables["CUDA_VISIBLE_DEVICES"] == "5,6"
    # On the only one it leaves the policy its part, unless the block says how much it may take.
    shared = started(GPU, environ={"CUDA_VISIBLE_DEVICES": "4"})
    assert shared.settings["gpu_memory_utilization"] == 0.3
    assert "CUDA_VISIBLE_DEVICES" not in shared.variables
    said = started(GPU, environ={"CUDA_VISIBLE_DEVICES": "4"}, vllm_serve_kwargs={"gpu_memory_utilization": 0.5})
    assert said.settings["gpu_memory_utilization"] == 0.5
    # An audit has no policy: all is the judge's.
    alone = started(GPU, beside=False, environ=environ)
    assert "gpu_memory_utilization" not in alone.settings
    assert "CUDA_VISIBLE_DEVICES" not in alone.variables
    assert "enforce_eager" not in alone.settings


def test_the_cache_on_a_processor() -> None:
    config = json.loads((Path(JUDGE) / "config.json").read_text())
    assert cpu_cache(config, 64, None, None) == 64 << 20
    large = {**config, "num_hidden_layers": 32, "num_key_value_heads": 8, "head_dim": 128}
    a_sequence = 2 * 4 * 32 * 8 * 128 * 4096
    assert cpu_cache(large, 3, 4096, None) == 3 * a_sequence
    assert cpu_cache(large, 64, 4096, 16 << 30) == 4 << 30
    # One sequence has to fit, or nothing can be asked.
    assert cpu_cache(large, 64, 4096, 1 << 30) == a_sequence
    assert cpu_cache({}, 64, None, 16 << 30) == 1 << 30


def test_where_the_program_is(tmp_path: Path) -> None:
    program = tmp_path / "env" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.touch()
    assert program_at(str(tmp_path / "env")) is None
    program.chmod(0o755)
    assert {program_at(str(path)) for path in (tmp_path / "env", program.parent, program)} == {program}
    assert program_at(str(tmp_path)) is None
    assert program_here({"PATH": f"/nowhere:{program.parent}"}) == program
    assert program_here({"PATH": "/nowhere"}) is None


@pytest.mark.parametrize(
    ("variable", "names"),
    [("0,2", ["0", "2"]), ("", []), ("-1", []), ("1,-1,2", ["1"]), ("GPU-8a, MIG-1", ["GPU-8a", "MIG-1"])],
)
def test_which_gpus_are_visible(variable: str, names: list[str], tmp_path: Path) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": variable}) == names
    for device in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / device).touch()
    assert visible_gpus({}, proc=tmp_path / "none", dev=tmp_path) == ["0", "1"]


LOG = """\
W1128 17:48:27.262000 1375 torch/_library/triton.py:53] Triton not available
(APIServer pid=1) INFO 11-28 17:48:27 [model.py:733] Resolved architecture: LlamaForCausalLM
(EngineCore pid=2) WARNING 11-28 17:48:32 [cpu_worker.py:114] libtcmalloc is not found
"""
FAILED = """\
(EngineCore pid=2) ERROR 11-28 17:48:33 [core.py:1] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-28 17:48:33 [core.py:1] torch.cuda.OutOfMemoryError: CUDA out of memory
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
/usr/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: 1 leaked semaphore
"""
REFUSED = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (100000) is too large
    For further information visit https://errors.pydantic.dev
"""


def test_what_it_does_while_it_loads() -> None:
    assert last_words(LOG) == "Resolved architecture: LlamaForCausalLM"
    shards = (
        "Loading safetensors checkpoint shards:   0% Completed | 0/2\rLoading safetensors checkpoint shards:  50% |"
    )
    assert last_words(LOG + shards) == "Loading safetensors checkpoint shards: 50% |"
    assert last_words("") == ""
    assert len(last_words(f"(APIServer pid=1) INFO 11-28 17:48:27 [m.py:7] {'long words ' * 50}")) == 100


def test_why_it_died() -> None:
    assert cause(LOG + FAILED) == "OutOfMemoryError: CUDA out of memory"
    refused = "1 validation error for ModelConfig Value error, User-specified max_model_len (100000) is too large"
    assert cause(LOG + REFUSED) == f"ValidationError: {refused}"
    assert cause("usage: vllm\nvllm: error: unrecognized arguments: --x 2\n") == "unrecognized arguments: --x 2"
    assert cause("Killed\n") == "Killed"
    assert cause("") == ""
