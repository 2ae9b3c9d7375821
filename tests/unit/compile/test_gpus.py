"""Who has which GPU under NeMo-RL, and the memory of each, against sums made by hand."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.compile.gpus import judge_gpus, judge_nodes
from nemotron.compile.plan import GpuMemory, Plan, compile_job
from nemotron.compile.render import plan_rows
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.executors.placement import placed
from nemotron.manifest import declaration, find_step
from nemotron.profiles.load import Profiles
from tests.unit.compile.compile_world import NODE

GIB = 2**30
COMPARE = "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare"
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
# Super3's RLHF: 64 nodes train, 8 judge.
SUPER3 = (
    *("grpo.num_prompts_per_step=128", "grpo.num_generations_per_prompt=16", "policy.train_global_batch_size=2048"),
    *("cluster.num_nodes=64", "policy.megatron_cfg.tensor_model_parallel_size=4", "policy.train_micro_batch_size=1"),
    *("policy.megatron_cfg.context_parallel_size=4", "policy.megatron_cfg.sequence_parallel=true"),
    *("policy.make_sequence_length_divisible_by=32", "policy.generation.vllm_cfg.tensor_parallel_size=8"),
    *("policy.max_total_sequence_length=49152", "policy.generation.max_new_tokens=32768"),
    f"+{JUDGE}.vllm_serve_kwargs={{tensor_parallel_size: 8, data_parallel_size: 8}}",
    f"{COMPARE}.genrm_responses_create_params.max_output_tokens=16384",
)


def plan_of(tmp_path: Path, *words: str, name: str = "default", step: str = "rlhf") -> Plan:
    found = find_step(f"rl/nemo_rl/{step}")
    code = declaration(found)
    overrides = parse_overrides(list(enumerate(words, start=5)))
    resolved = load(found.config_dir, name, overrides, run_dir=str(tmp_path / "RUN_ID"), model=code.config)
    env = {"TORCH_CUDA_ARCH_LIST": "9.0"}
    return compile_job(found, resolved, code, runs_dir=tmp_path, place=replace(NODE, memory_bytes=None), env=env)


def model(folder: Path, *, parameters: int, **config: int) -> Path:
    """A model folder of any size whose numbers are a hole in a file."""
    folder.mkdir()
    sizes = {"hidden_size": 2048, "num_hidden_layers": 16, "vocab_size": 128256, "num_attention_heads": 32, **config}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    rows = parameters // 1000
    tensor = {"dtype": "BF16", "shape": [rows, 1000], "data_offsets": [0, rows * 2000]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + rows * 2000)
    return folder


def processes(plan: Plan) -> dict[str, str]:
    return {process.role: process.where for process in plan.processes}


def test_the_place_of_everything_in_a_job_of_72_nodes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *SUPER3)
    assert not plan.errors, plan.errors
    assert processes(plan) == {
        "policy": "512 of 64 x 8 GPUs: Megatron, 32 data-parallel ranks of 16 GPU(s)",
        "generation": "vllm, on the same GPUs",
        "comparison": "our server under NeMo-Gym, beside the driver",
        "judge": "NeMo-Gym's genrm_model: vLLM on 64 GPU(s) of its own",
        "allocation": "72 nodes of 8 GPUs: 64 to train (`cluster.num_nodes`), 8 more for the judge",
    }
    assert plan.work is not None
    assert plan.work.judge_calls == 128 * 16
    # Each question has the prompt and two answers.
    assert plan.work.judge_reads == 2048 * (49152 - 32768 + 2 * 32768)
    assert plan.work.judge_writes == 2048 * 16384


def test_all_pairs_ask_more(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *SUPER3, f"{COMPARE}.comparison_strategy=all_pairs")
    assert plan.work is not None
    assert plan.work.judge_calls == 128 * 16 * 15 // 2


def test_a_judge_elsewhere_takes_no_gpu(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, f"{JUDGE}.base_url=http://judge:8000/v1")
    assert "allocation" not in processes(plan)
    assert (judge_gpus(plan.config.env.judge_model), judge_nodes(plan.config)) == (0, 0)  # type: ignore[union-attr]


def test_memory_of_a_gpu_by_hand(tmp_path: Path) -> None:
    """1B parameters on 8 GPUs: bfloat16 weights and gradients, an optimizer that is spread over 8 ranks."""
    folder = model(tmp_path / "m", parameters=1_000_000_000)
    found = plan_of(tmp_path, f"policy.model_name={folder}").memory
    tokens = 4 * 2048
    assert found == GpuMemory(
        weights=2 * 10**9,
        gradients=2 * 10**9,
        optimizer=12 * 10**9 // 8,
        activations=34 * 2048 * tokens * 16 + 6 * tokens * 128256,
        generation_share=0.6,
    )


@pytest.mark.parametrize(
    ("words", "part", "factor"),
    [
        (("policy.megatron_cfg.tensor_model_parallel_size=2",), "weights", 1 / 2),
        (("policy.megatron_cfg.pipeline_model_parallel_size=4",), "weights", 1 / 4),
        (("policy.megatron_cfg.distributed_data_parallel_config.grad_reduce_in_fp32=true",), "gradients", 2),
        (("policy.megatron_cfg.optimizer.use_distributed_optimizer=false",), "optimizer", 8),
        (("policy.megatron_cfg.context_parallel_size=2",), "optimizer", 1),
        (("policy.megatron_cfg.context_parallel_size=2",), "activations", 1 / 2),
        (("policy.train_micro_batch_size=2",), "activations", 1 / 2),
    ],
)
def test_what_makes_it_less(tmp_path: Path, words: tuple[str, ...], part: str, factor: float) -> None:
    folder = model(tmp_path / "m", parameters=1_000_000_000)
    before, after = (plan_of(tmp_path, f"policy.model_name={folder}", *more).memory for more in ((), words))
    assert getattr(after, part) == pytest.approx(getattr(before, part) * factor)


def test_checkpointing_keeps_one_layer_whole(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", parameters=1_000_000_000)
    word = "policy.megatron_cfg.activation_checkpointing=true"
    found = plan_of(tmp_path, f"policy.model_name={folder}", word).memory
    tokens = 4 * 2048
    assert isinstance(found, GpuMemory)
    assert found.activations == 2 * 2048 * tokens * 16 + 34 * 2048 * tokens + 6 * tokens * 128256


def test_a_model_with_experts_is_not_estimated(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", parameters=1_000_000_000, num_local_experts=8)
    assert plan_of(tmp_path, f"policy.model_name={folder}").memory is None


@pytest.mark.parametrize(
    ("nodes", "gpus", "word", "fits"),
    [
        (1, 8, "cluster.gpus_per_node=8", False),
        (2, 8, "cluster.gpus_per_node=8", True),
        (1, 8, "cluster.gpus_per_node=7", True),
        (1, 8, f"{JUDGE}.base_url=http://judge:8000/v1", True),
    ],
)
def test_the_allocation_holds_the_judge_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, gpus: int, word: str, fits: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    place = 'executor = "ray"\naddress = "http://h:8265"\nremote_job_dir = "/shared"'
    text = f"[mine]\n{place}\nnodes = {nodes}\ngpus_per_node = {gpus}\n"
    (tmp_path / "profiles" / "p.toml").write_text(text)
    more = ("policy.train_global_batch_size=448", "grpo.num_prompts_per_step=56") if "7" in word else ()
    plan = placed(plan_of(tmp_path, word, *more), Profiles().get("mine"), ships_assets=True, rehearsal=False)
    assert "cluster-does-not-fit" not in {finding.name for finding in plan.findings}
    found = [finding for finding in plan.findings if finding.name == "judge-without-gpus"]
    assert not found if fits else len(found) == 1
    if not fits:
        assert "the judge needs 1 of its own" in found[0].message
        assert "`nodes = 2`" in str(found[0].hint)
        assert "`cluster.gpus_per_node=7`" in str(found[0].hint)


SMALL, LARGE = ({"hidden_size": 2048, "num_hidden_layers": 16}, {"hidden_size": 4096, "num_hidden_layers": 32})
MEGATRON = "policy.megatron_cfg"
GUIDE = (
    (
        1_236_000_000,
        SMALL,
        ("cluster.gpus_per_node=7", "grpo.num_prompts_per_step=56", "policy.train_global_batch_size=448"),
    ),
    (
        8_030_000_000,
        LARGE,
        (
            *(f"{MEGATRON}.tensor_model_parallel_size=2", f"{MEGATRON}.sequence_parallel=true"),
            f"{MEGATRON}.activation_checkpointing=true",
        ),
    ),
    (None, {}, SUPER3),
)


@pytest.mark.parametrize(("parameters", "sizes", "words"), GUIDE)
def test_the_guide_has_the_tables_of_the_plan(
    tmp_path: Path, parameters: int | None, sizes: dict[str, int], words: tuple[str, ...]
) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "scaling.md").read_text()
    more = (f"policy.model_name={model(tmp_path / 'm', parameters=parameters, **sizes)}",) if parameters else ()
    rows = dict(plan_rows(plan_of(tmp_path, *more, *words)))
    for name in ("policy", "allocation", *(("memory of a GPU",) if parameters else ("judge calls", "judge"))):
        assert f"| {name} | {rows[name]} |" in guide


REWARD = "env.reward_model"


@pytest.mark.parametrize("value", [".inf", ".nan", "two", "[8]", "0", "-1", "1.5", "null"])
@pytest.mark.parametrize(
    ("step", "key"),
    [
        ("rlhf", f"{JUDGE}.vllm_serve_kwargs.tensor_parallel_size"),
        ("rlhf", f"{JUDGE}.vllm_serve_kwargs"),
        ("ppo", f"{REWARD}.resources.num_nodes"),
        ("ppo", f"{REWARD}.resources"),
        ("ppo", REWARD),
    ],
)
def test_a_number_of_gpus_is_one(tmp_path: Path, step: str, key: str, value: str) -> None:
    """They are NeMo-RL's and NeMo-Gym's own keys, but we count with them."""
    plan = plan_of(tmp_path, f"++{key}={value}", step=step)
    assert key in {finding.key for finding in plan.errors}, plan.errors
