"""The real Megatron-Core on CPU, run in its own venv: load a checkpoint strictly into a GPTModel, or save one.

    python gpt.py JOB.json

    {"command": "logits", "models": [{"checkpoint": ..., "hf": ...}]}      prints a list of {"difference", "spread"}
    {"command": "save", "tp": 2, "pp": 1, "dp": 1, "what": "optimizer", "models": [{"checkpoint", "hf", "out"}]}

`save` loads each checkpoint on tp x pp x dp processes and saves it again; `what` is plain, optimizer or per-layer.
Megatron-Core 0.16.1 wants a GPU in five places; the stand-ins are all here, none touches weights or formats.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.overrides import TorchFunctionMode

torch.cuda.current_device = lambda: torch.device("cpu")
torch.cuda.synchronize = lambda *_: None


class OnCpu(TorchFunctionMode):
    """Whatever asks for "cuda" gets the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.type and len(args) == 1 and not kwargs:
            return function(*args).replace("torch.", "torch.cuda.")
        return function(*args, **kwargs)


def start(rank: int, world: int, port: int, tp: int, pp: int) -> None:
    """Process group and Megatron's own groups; no CUDA random states."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)

    class NoStates:
        def fork(self, *_):
            return contextlib.nullcontext()

        def is_initialized(self):
            return True

    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.") and "get_cuda_rng_tracker" in vars(module):
            module.get_cuda_rng_tracker = lambda *_, **__: NoStates()


def build(hf: dict, tp: int, pp: int):
    """A GPTModel with Megatron's local layers, from a Hugging Face config."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    rope = hf["rope_parameters"]
    config = TransformerConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_query_groups=hf["num_key_value_heads"],
        kv_channels=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        normalization="RMSNorm",
        layernorm_epsilon=hf["rms_norm_eps"],
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=hf["model_type"] == "qwen2",
        qk_layernorm=hf["model_type"] == "qwen3",
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        pipeline_dtype=torch.float32,
        params_dtype=torch.float32,
    )
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    rows = -(-hf["vocab_size"] // (128 * tp)) * 128 * tp  # Megatron pads the vocabulary so that it divides
    return GPTModel(
        config,
        spec,
        vocab_size=rows,
        max_sequence_length=hf["max_position_embeddings"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=hf["tie_word_embeddings"],
        position_embedding_type="rope",
        rotary_base=rope["rope_theta"],
        rope_scaling=rope["rope_type"] == "llama3",
        rope_scaling_factor=rope.get("factor", 8.0),
        parallel_output=False,
    )


def load(model, checkpoint: str) -> None:
    """Strictly: anything that the model asks for and the checkpoint lacks is an error."""
    from megatron.core import dist_checkpointing

    state = dist_checkpointing.load({"model": model.sharded_state_dict()}, checkpoint)
    model.load_state_dict(state["model"], strict=True)


def logits(models: list[dict]) -> list[dict[str, float]]:
    """Per model: largest absolute difference between the logits of GPTModel and Hugging Face, and the largest logit."""
    from transformers import AutoModelForCausalLM

    start(0, 1, free_port(), 1, 1)
    results = []
    for job in models:
        hf = json.loads(Path(job["hf"], "config.json").read_text())
        model = build(hf, 1, 1).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))  # so that a weight that is not loaded shows
        load(model, job["checkpoint"])
        reference = AutoModelForCausalLM.from_pretrained(job["hf"], dtype=torch.float32).eval()
        torch.manual_seed(0)
        tokens = torch.randint(0, hf["vocab_size"], (2, 48))
        mask = torch.ones(1, 1, 48, 48).tril() < 0.5
        with torch.no_grad():
            ours = model(tokens, torch.arange(48).expand(2, -1), mask)[..., : hf["vocab_size"]]
            theirs = reference(tokens).logits
        results.append({"difference": float((ours - theirs).abs().max()), "spread": float(theirs.abs().max())})
    return results


def optimizer_state(model) -> dict:
    """Adam's moments after one step, as Megatron's distributed optimizer shards them over its ranks."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    with OnCpu():
        wrapped = DistributedDataParallel(
            model.config, DistributedDataParallelConfig(use_distributed_optimizer=True), model
        )
        config = OptimizerConfig(optimizer="adam", lr=0.0, weight_decay=0.0, use_distributed_optimizer=True)
        optimizer = get_megatron_optimizer(config, [wrapped])
        for parameter in model.parameters():
            parameter.main_grad.fill_(1e-3)
        optimizer.step()  # with a rate of zero the moments appear and the weights stay
        metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
        return optimizer.sharded_state_dict(model.sharded_state_dict(), metadata=metadata)


def save(rank: int, job: dict, port: int) -> None:
    """Load into this rank's part of each model and save it with all ranks."""
    tp, pp, dp, what = job["tp"], job["pp"], job["dp"], job["what"]
    start(rank, tp * pp * dp, port, tp, pp)
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

    for one in job["models"]:
        with OnCpu():
            model = build(json.loads(Path(one["hf"], "config.json").read_text()), tp, pp)
        load(model, one["checkpoint"])
        metadata = {"non_homogeneous_layers": True} if what == "per-layer" else None
        state = {"model": model.sharded_state_dict(metadata=metadata), "iteration": 7, "checkpoint_version": 3.0}
        if what == "optimizer":
            state["optimizer"] = optimizer_state(model)
        if rank == 0:
            Path(one["out"]).mkdir(parents=True)
        dist.barrier()
        strategy = TorchDistSaveShardedStrategy("torch_dist", 1)
        if dp > 1:
            group = parallel_state.get_data_parallel_group(with_context_parallel=True)
            strategy = FullyParallelSaveStrategyWrapper(strategy, group, do_cache_distribution=False)
        dist_checkpointing.save(state, one["out"], strategy)
        dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["command"] == "logits":
        print(json.dumps(logits(job["models"])))
    else:
        # Most of the work of a rank is what it imports: all are forks of a process that has imported it.
        from megatron.core.dist_checkpointing.strategies import fully_parallel  # noqa: F401
        from megatron.core.models.gpt import GPTModel  # noqa: F401
        from megatron.core.optimizer import get_megatron_optimizer  # noqa: F401

        ranks = job["tp"] * job["pp"] * job["dp"]
        mp.start_processes(save, args=(job, free_port()), nprocs=ranks, start_method="fork")
