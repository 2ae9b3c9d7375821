"""Who samples for a run of the embedded engine: the policy itself, or a vLLM that follows its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nemotron.compile.gpus import judge_gpus
from nemotron.config.schema.extras import GrpoRunConfig
from nemotron.contracts.sampler import Sampler
from nemotron.disk.documents import read_object
from nemotron.disk.faults import errors_of_rust
from nemotron.disk.home import expanded
from nemotron.engines.embedded.parts import TrainingParts, precision
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import EngineError
from nemotron.place import Place
from nemotron.processes.vanishing import vanishing_folder
from nemotron.rl.lora import Merged
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler
from nemotron.rl.threads import ThreadPlan
from nemotron.rl.vllm_sampler import NAME, Exported, VllmSampler, hand_over
from nemotron.vllm.arguments import SHARED_GPU, Serve, cpu_cache, gpus
from nemotron.vllm.server import VllmServer
from nemotron.vllm.where import get, gpus_for, program_of

COMMAND = "sampler.vllm_command"
_MOST_SEQUENCES = 256


def open_sampler(
    parts: TrainingParts[GrpoRunConfig], policy: Policy, threads: ThreadPlan, stack: ExitStack, recorder: RunRecorder
) -> Sampler:
    """The sampler of `sampler.server`; what has to be closed is left on ``stack``. A vLLM may still be loading.

    Raises:
        EngineError: there is no vLLM. OutputError: the weights cannot be handed over.
    """
    config, settings = parts.config, parts.config.sampler
    if settings.server == "embedded":
        return PolicySampler(policy)
    program, place = program_of(settings.vllm_command, Place.this_machine()), Place.this_machine()
    if program is None:
        where = settings.vllm_command or "PATH"
        raise EngineError(f"there is no program `vllm` at `{where}`", hint=get(COMMAND))
    weights_dir = expanded(settings.weights_dir) if settings.weights_dir else None
    folder = stack.enter_context(vanishing_folder(weights_dir))
    # A path of a socket is short: it lies among the temporary files, wherever the weights are.
    at = stack.enter_context(vanishing_folder()) / "vllm"
    exported: Exported = Merged(policy) if parts.lora is not None else policy.model
    hand_over(exported, folder)
    with errors_of_rust():
        parts.chat.tokenizer.save_pretrained(folder)
    server = VllmServer(
        "the policy's samples",
        serve_policy(config, program, place, folder, threads),
        failure=EngineError,
        ready_timeout_s=settings.ready_timeout_s,
        ready_key="sampler.ready_timeout_s",
        max_restarts=settings.max_restarts,
        log_path=parts.attempt.logs / "sampler.log",
        at=at,
    )
    stack.enter_context(server)
    return stack.enter_context(
        VllmSampler(
            policy,
            exported,
            server,
            folder=folder,
            at=at,
            longest=config.policy.max_total_sequence_length,
            timeout_s=settings.request_timeout_s,
            note=recorder.note,
        )
    )


def serve_policy(
    config: GrpoRunConfig,
    program: Path,
    place: Place,
    folder: Path,
    threads: ThreadPlan,
    environ: Mapping[str, str] = os.environ,
) -> Serve:
    """What vLLM is started with: what the section says, on top of what fits the policy and this machine."""
    given = {name.replace("-", "_"): value for name, value in (config.sampler.vllm_serve_kwargs or {}).items()}
    longest = config.policy.max_total_sequence_length
    sequences = min(_MOST_SEQUENCES, config.grpo.num_prompts_per_step * config.grpo.num_generations_per_prompt)
    settings: dict[str, Any] = {
        "dtype": precision(config.policy.precision),
        "max_model_len": longest,
        "max_num_seqs": sequences,
        # How to draw is said by the run alone, and log-probabilities are those of what was drawn from.
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "disable_uvicorn_access_log": True,
    }
    variables = {
        # It and the policy take turns.
        "OMP_NUM_THREADS": str(threads.policy),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if place.has_cuda:
        # A judge has the last ones.
        behind = judge_gpus(config.env.judge_model)
        own = gpus_for(environ, gpus(given), behind=behind)
        if own is not None:
            variables["CUDA_VISIBLE_DEVICES"] = own
        else:
            settings["gpu_memory_utilization"] = SHARED_GPU
    else:
        read = read_object(folder / "config.json")
        cache = cpu_cache(read, sequences, longest, place.memory_bytes)
        settings |= {"enforce_eager": True, "kv_cache_memory_bytes": cache}
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    variables |= config.sampler.vllm_serve_env_vars or {}
    return Serve(program, str(folder), NAME, {**settings, **given}, variables)
