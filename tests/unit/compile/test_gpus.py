"""Who has which GPU under NeMo-RL, and the memory of each, against sums made by hand."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.gpus import judge_gpus, judge_nodes
from nemotron.compile.plan import GpuMemory, Plan, ServedMemory, compile_job
from nemotron.compile.render import plan_rows
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.errors import Finding
from nemotron.executors.placement import placed
from nemotron.manifest import declaration, find_step
from nemotron.place import Place
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


THERE = replace(NODE, memory_bytes=None)


def plan_of(tmp_path: Path, *words: str, name: str = "default", step: str = "rlhf", place: Place = THERE) -> Plan:
    found = find_step(f"rl/nemo_rl/{step}")
    code = declaration(found)
    overrides = parse_overrides(list(enumerate(words, start=5)))
    resolved = load(found.config_dir, name, overrides, run_dir=str(tmp_path / "RUN_ID"), model=code.config)
    env = {"TORCH_CUDA_ARCH_LIST": "9.0"}
    return compile_job(found, resolved, code, runs_dir=tmp_path, place=place, env=env)


def model(folder: Path, *, parameters: int, **config: Any) -> Path:
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
        served=(
            # 16 layers, 32 heads of 64 numbers, a key and a value of two bytes each; no folder of the judge is here
            ServedMemory(
                role="generation", weights=2 * 10**9, cache=2 * 16 * 32 * 64 * 2 * 2048, tokens=2048, share=0.6
            ),
        ),
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


MIXTRAL = {
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 32000},
    **{"intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2},
}
"""As published: 46.7B parameters, 45.1B of them in experts; 12.9B work on a token."""


def mixtral(folder: Path) -> Path:
    model(folder, parameters=1000, **MIXTRAL)
    inside = {f"model.layers.{n}.mlp.experts.gate_up_proj": [8, 28672, 4096] for n in range(32)}
    inside |= {f"model.layers.{n}.mlp.experts.down_proj": [8, 4096, 14336] for n in range(32)}
    shapes = {**inside, "model.rest.weight": [1_605_639, 1000]}
    header = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    written = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(written)) + written)
    return folder


def test_experts_are_split_by_their_own_sizes(tmp_path: Path) -> None:
    """Mixtral 8x7B on 8 GPUs: TP 2, EP 4."""
    words = (
        *("policy.megatron_cfg.tensor_model_parallel_size=2", "policy.megatron_cfg.sequence_parallel=true"),
        *("policy.megatron_cfg.expert_model_parallel_size=4", "policy.generation.vllm_cfg.tensor_parallel_size=8"),
    )
    found = plan_of(tmp_path, f"policy.model_name={mixtral(tmp_path / 'm')}", *words).memory
    assert isinstance(found, GpuMemory)
    inside = 32 * 8 * 3 * 14336 * 4096
    rest = 1_605_639_000
    assert inside == 45_097_156_608
    assert found.weights == 2 * (rest // 2 + inside // 4)
    # The rest is in 4 copies, each expert in 2: 8 GPUs hold 4 groups of them.
    assert found.optimizer == pytest.approx(12 * (rest / 8 + inside / 8))
    # Two experts of 14,336 are 1.75 times as wide as the four times 4,096 of the formula.
    tokens = 4 * 2048
    whole = 4096 * tokens * (15 + 19 * 1.75) / 2
    assert found.activations == pytest.approx(whole * 32 + 6 * tokens * 32000 / 2)
    [served] = found.served
    assert (served.weights, served.cache) == (2 * (inside + rest) // 8, 2 * 32 * 1 * 128 * 2 * 2048)


def test_the_cache_of_a_known_model(tmp_path: Path) -> None:
    """Llama 3 8B keeps 128 KiB a token in half precision: 8 GiB for 65,536 of them."""
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_key_value_heads": 8}
    folder = model(tmp_path / "m", parameters=8_030_000_000, **sizes)
    judge = model(tmp_path / "judge", parameters=8_030_000_000, **sizes, max_position_embeddings=131072)
    words = (f"{JUDGE}.model={judge}", "policy.generation.vllm_cfg.max_model_len=65536")
    served = plan_of(tmp_path, f"policy.model_name={folder}", *words).memory.served  # type: ignore[union-attr]
    assert [(one.role, one.tokens, one.cache) for one in served] == [
        ("generation", 65536, 8 * GIB),
        ("judge", 131072, 16 * GIB),
    ]


@pytest.mark.parametrize("changes", [{"model_type": "mamba2"}, {"kv_lora_rank": 512}])
def test_what_keeps_something_else_is_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = model(tmp_path / "m", parameters=1_000_000_000, **changes)
    memory = plan_of(tmp_path, f"policy.model_name={folder}").memory
    assert isinstance(memory, GpuMemory)
    assert memory.served == ()


def test_the_profile_says_how_large_a_gpu_is(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_key_value_heads": 8}
    folder = model(tmp_path / "m", parameters=8_030_000_000, **sizes)
    words = (f"policy.model_name={folder}", "policy.generation.vllm_cfg.max_model_len=4096")

    def named(gib: float | None, *more: str) -> dict[str, Finding]:
        size = None if gib is None else int(gib * GIB)
        plan = plan_of(tmp_path, *words, *more, place=replace(NODE, memory_bytes=None, gpu_memory_bytes=size))
        return {one.name: one for one in plan.findings if one.name in ("gpu-memory", "vllm-memory")}

    assert not named(None)
    assert not named(200)
    assert named(64).keys() == {"gpu-memory"}
    assert (named(64)["gpu-memory"].severity, "activations" in named(64)["gpu-memory"].message) == ("warning", True)
    # 15.0 GiB of weights and 0.5 of cache, in 60% of 24 GiB.
    assert named(24).keys() == {"gpu-memory", "vllm-memory"}
    error = named(24)["vllm-memory"]
    assert (error.severity, error.key) == ("error", "policy.generation.vllm_cfg.tensor_parallel_size")
    assert "15.0 GiB of weights and 0.5 GiB for a sequence of 4,096 tokens" in error.message
    split = ("policy.generation.vllm_cfg.tensor_parallel_size=2", "policy.megatron_cfg.tensor_model_parallel_size=2")
    assert "vllm-memory" not in named(24, *split)


def test_a_model_whose_experts_are_not_counted_is_not_estimated(tmp_path: Path) -> None:
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
    for name in (
        "policy",
        "allocation",
        *(
            ("memory of a GPU", *(("vLLM's generation",) if sizes is SMALL else ()))
            if parameters
            else ("judge calls", "judge")
        ),
    ):
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
