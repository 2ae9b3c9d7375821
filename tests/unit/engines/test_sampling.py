"""What a vLLM that samples is started with, beside the policy and a judge."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nemotron.config.schema.judge import GenrmModelConfig
from nemotron.config.schema.sampler import SamplerConfig
from nemotron.engines.embedded.sampling import serve_policy
from nemotron.place import Place
from nemotron.rl.threads import ThreadPlan
from nemotron.vllm.arguments import Serve

CPU, GPU = Place(memory_bytes=16 << 30), Place(memory_bytes=16 << 30, has_cuda=True)


def started(folder: Path, place: Place, shown: str = "0", judge: dict[str, Any] | None = None, **said: Any) -> Serve:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps(sizes))
    model = GenrmModelConfig.model_validate({"model": "m", **judge}) if judge is not None else None
    config = SimpleNamespace(
        policy=SimpleNamespace(precision="bf16", max_total_sequence_length=96),
        grpo=SimpleNamespace(num_prompts_per_step=4, num_generations_per_prompt=8),
        sampler=SamplerConfig.model_validate({"server": "vllm", **said}),
        env=SimpleNamespace(judge_model=model),
    )
    threads, environ = ThreadPlan(cores=4, policy=3, helper=1), {"CUDA_VISIBLE_DEVICES": shown}
    return serve_policy(cast(Any, config), Path("vllm"), place, folder, threads, environ)


def test_it_fits_the_policy(tmp_path: Path) -> None:
    serve = started(tmp_path, CPU)
    wanted = {"dtype": "bfloat16", "max_model_len": 96, "max_num_seqs": 32, "logprobs_mode": "processed_logprobs"}
    assert serve.settings | wanted == serve.settings
    # What takes over weights is there, and nothing is asked of the network.
    assert (serve.variables["VLLM_SERVER_DEV_MODE"], serve.variables["HF_HUB_OFFLINE"]) == ("1", "1")
    assert serve.variables["OMP_NUM_THREADS"] == "3"
    assert started(tmp_path, CPU, vllm_serve_kwargs={"max-num-seqs": 4}).settings["max_num_seqs"] == 4


@pytest.mark.parametrize(
    ("shown", "judge", "own"),
    [
        ("0", None, None),
        ("4,5", None, "5"),
        # The judge has the last ones, the policy the first.
        ("4,5", {}, None),
        ("4,5,6", {}, "5"),
        ("4,5,6,7", {"vllm_serve_kwargs": {"tensor_parallel_size": 2}}, "5"),
        ("4,5", {"base_url": "http://host/v1"}, "5"),
    ],
)
def test_gpus_beside_the_policy_and_the_judge(tmp_path: Path, shown: str, judge: Any, own: str | None) -> None:
    serve = started(tmp_path, GPU, shown, judge)
    assert serve.variables.get("CUDA_VISIBLE_DEVICES") == own
    assert serve.settings.get("gpu_memory_utilization") == (None if own else 0.3)


def test_how_far_it_may_be_from_the_policy() -> None:
    assert [SamplerConfig().gap(name) for name in ("float32", "fp32", "bfloat16")] == [1e-3, 1e-3, 0.1]
    assert SamplerConfig(max_gap=0.5).gap("float32") == 0.5
