"""A judge behind `vllm serve`, which the run starts and keeps running."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nemotron.checkpoints import hf
from nemotron.checkpoints.folders import folder_of
from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.errors import JudgeError
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.serving import COMMAND
from nemotron.place import Place
from nemotron.vllm.arguments import SHARED_GPU, Serve, cpu_cache, gpus
from nemotron.vllm.server import Tell, VllmServer
from nemotron.vllm.where import get, gpus_for

SMALL = 50_000_000
"""Parameters below which `judge.dtype=auto` means float32, as it means float64 on our own server."""
_FLOAT32_BYTES = 4 * SMALL


class VllmJudge:
    """Serves a judge by vLLM on loopback. See :class:`nemotron.vllm.server.VllmServer` for what becomes of it.

    Example::

        with VllmJudge(model, config, program, place, beside_policy=True) as judge:
            policy = Policy.load(...)
            with JudgePool(judge.wait(print), settings, keeper=judge) as pool: ...
    """

    def __init__(
        self,
        model: GenrmModelConfig,
        config: JudgeConfig,
        program: Path | None,
        place: Place,
        *,
        beside_policy: bool,
        log_path: Path | None = None,
    ) -> None:
        """``beside_policy``: a policy computes in this process, on the first GPU where there are some.

        Raises:
            JudgeError: there is no program.
        """
        if program is None:
            raise JudgeError(f"there is no program `vllm` at `{config.vllm_command or 'PATH'}`", hint=get(COMMAND))
        self._name = model.model
        self._server = VllmServer(
            f"the judge `{model.model}`",
            serve_judge(model, config, program, place, beside_policy=beside_policy),
            failure=JudgeError,
            ready_timeout_s=config.vllm_ready_s,
            ready_key="judge.ready_timeout_s",
            max_restarts=config.max_restarts,
            log_path=log_path,
        )

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    @property
    def starts(self) -> int:
        """How often it has become ready."""
        return self._server.starts

    @property
    def pid(self) -> int | None:
        """The process group of the server that answers."""
        return self._server.pid

    def wait(self, tell: Tell, note: Tell | None = None) -> Endpoint:
        """Where it answers, when it does; see :meth:`nemotron.vllm.server.VllmServer.wait`."""
        self._server.wait(tell, note)
        return Endpoint(f"{self._server.url}/v1", self._name, self._server.token)

    def again(self, since: int) -> bool | None:
        """See :class:`nemotron.judge.endpoint.Keeper`."""
        return self._server.again(since)


def serve_judge(
    model: GenrmModelConfig,
    config: JudgeConfig,
    program: Path,
    place: Place,
    *,
    beside_policy: bool,
    environ: Mapping[str, str] = os.environ,
) -> Serve:
    """What vLLM is started with: what the block of the judge says, on top of what fits this machine."""
    given = model.vllm_serve_kwargs.settings if model.vllm_serve_kwargs else {}
    given = {name.replace("-", "_"): value for name, value in given.items()}
    folder = folder_of(model.model, place)
    dtype = config.dtype
    if dtype == "auto" and (not place.has_cuda or (folder is not None and _weight(folder) < _FLOAT32_BYTES)):
        dtype = "float32"
    settings: dict[str, Any] = {
        "dtype": dtype,
        "max_num_seqs": config.max_batch_size,
        # What a request does not say is not drawn from the model's `generation_config.json`, as on our own server.
        "generation_config": "vllm",
        # Without it a verdict may be white space until its tokens are used up.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "disable_uvicorn_access_log": True,
    }
    variables = {
        "OMP_NUM_THREADS": str(config.server_threads),
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if folder is not None:
        # All that it needs is on this machine.
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if place.has_cuda:
        own = gpus_for(environ, gpus(given)) if beside_policy else None
        if own is not None:
            variables["CUDA_VISIBLE_DEVICES"] = own
        elif beside_policy:
            settings["gpu_memory_utilization"] = SHARED_GPU
    else:
        length = given.get("max_model_len")
        read = hf.read_config(folder) if folder is not None else {}
        cache = cpu_cache(read, config.max_batch_size, length if isinstance(length, int) else None, place.memory_bytes)
        # Compiling takes longer than it saves here, and a process more takes a core that there may not be.
        settings |= {"enforce_eager": True, "kv_cache_memory_bytes": cache}
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    variables |= model.vllm_serve_env_vars or {}
    return Serve(program, model.model, model.model, {**settings, **given}, variables)


def _weight(folder: Path) -> int:
    """Bytes of the weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
