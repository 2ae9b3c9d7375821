"""Draws responses with a vLLM of the run's own, which takes over the policy's weights after every update.

The server answers at a socket in a folder of this user alone: what takes over weights is not guarded by a token in
vLLM, and would be in reach of everybody on the machine behind a port.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
import tenacity
from safetensors.torch import save_file

from nemotron.checkpoints import hf
from nemotron.contracts.sampler import OnGroup, Pass
from nemotron.contracts.samples import Completion, Group, SamplingParams
from nemotron.disk.documents import parse_json, read_object
from nemotron.disk.faults import output_errors
from nemotron.errors import DataError, EngineError
from nemotron.processes.loop_thread import LoopThread
from nemotron.processes.replies import TooLongError, read_text
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import check_prompts
from nemotron.vllm.server import Tell, VllmServer
from nemotron.vllm.tries import Interrupted, Tries

NAME = "policy"
"""What requests call the model."""
_AT_ONCE = 256
"""Requests on their way; vLLM queues what it does not decode together."""
_TRIES = 3
_PAUSE_S = 0.5
_EXCERPT = 300
_MOST_BYTES = 64 << 20
"""Of an answer: a response of a million tokens has fewer."""
_SEEDS = 2**63
HEAD, _HEAD_FILE = "lm_head.weight", "model-head.safetensors"
_ALWAYS_TIED = ("gemma",)
"""Families that compute with the embedding itself: in vLLM they have no head."""


class Exported(Protocol):
    """A model with Hugging Face's way of being written; of adapters, the merged one."""

    def save_pretrained(self, folder: Path) -> Any:
        """Write configuration and weights."""


class _Failed(Exception):
    """No answer, or one that says that the server is in trouble."""


class VllmSampler:
    """A ``Sampler`` that asks ``server``. What it was being asked when that died is asked again.

    Example::

        hand_over(policy.model, folder)   # before the server starts
        with VllmServer(..., at=socket) as server, VllmSampler(policy, policy.model, server, ...) as sampler:
            groups = sampler.generate(prompts, 8, params, seeds)
            ...                           # an optimizer step
            sampler.refresh()
    """

    exact_logprobs = False

    def __init__(
        self,
        policy: Policy,
        exported: Exported,
        server: VllmServer,
        *,
        folder: Path,
        at: Path,
        longest: int,
        timeout_s: float,
        note: Tell,
    ) -> None:
        """``exported`` is written into ``folder``, from where ``server``, at the socket ``at``, takes its weights.

        Args:
            longest: tokens of a prompt with its response that the server takes.
            timeout_s: that one request may take.
            note: hears when the server had to be started again.
        """
        self._policy, self._exported, self._server = policy, exported, server
        self._folder, self._at, self._longest, self._timeout_s = folder, at, longest, timeout_s
        self._note = note
        self._background = LoopThread("vllm-sampler")
        self._slots: asyncio.Semaphore | None = None
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Self:
        self._background.start()
        self._background.run(self._open()).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._background.close(self._leave)

    def wait(self, tell: Tell) -> None:
        """Wait until it can draw. Raises EngineError when it cannot be started."""
        self._server.wait(tell, self._note)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seeds: Sequence[Sequence[int]],
        *,
        on_group: OnGroup | None = None,
        keep: bool = False,
    ) -> list[Group]:
        """See ``Sampler``. Equal seeds draw equal responses, where the rounding of a batch flips no token."""
        check_prompts(self._policy, prompts, params)
        for index, prompt in enumerate(prompts):
            if len(prompt) + params.max_new_tokens > self._longest:
                raise DataError(
                    f"prompt {index} has {len(prompt)} tokens; with {params.max_new_tokens} new ones it exceeds "
                    f"`policy.max_total_sequence_length` ({self._longest})",
                    hint="drop or shorten it, or raise the limit",
                )
        self.wait(_nobody)
        futures = {
            self._background.run(self._group(prompt, n, params, own)): index
            for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True))
        }
        groups: dict[int, Group] = {}
        for future in as_completed(futures):
            index = futures[future]
            groups[index] = group = future.result()
            if on_group is not None:
                on_group(index, group)
        return [groups[index] for index in range(len(prompts))]

    def take_pass(self) -> Pass | None:
        """Nothing is kept: what vLLM computed lies in its process."""
        return None

    def refresh(self) -> None:
        """Hand the weights over, and forget what was computed with those before.

        Raises:
            EngineError: the server cannot be reached, or does not take them. OutputError: they cannot be written.
        """
        hand_over(self._exported, self._folder)
        self.wait(_nobody)
        self._background.run(self._refresh()).result()

    async def _refresh(self) -> None:
        await self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self._folder)}})
        await self.forget()

    async def forget(self) -> None:
        """Drop the keys and values of prompts: those of other weights would be taken for those of these."""
        freed = await self._ask("/reset_prefix_cache", None, ready=lambda said: said.get("success") is not False)
        if freed.get("success") is False:
            raise EngineError("vLLM still holds a part of its cache, computed with the weights before")

    async def _group(self, prompt: Sequence[int], n: int, params: SamplingParams, seeds: Sequence[int]) -> Group:
        rows = (self._completion(prompt, params, seed) for seed in seeds[:n])
        return Group(list(prompt), list(await asyncio.gather(*rows)))

    async def _completion(self, prompt: Sequence[int], params: SamplingParams, seed: int) -> Completion:
        assert self._slots is not None
        asked = {
            "model": NAME,
            "prompt": list(prompt),
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k if params.top_k is not None and params.top_k > 0 else -1,
            "seed": seed % _SEEDS,
            # The ends of a response are ours, whatever the model's files say.
            "ignore_eos": True,
            "stop_token_ids": list(params.stop_token_ids),
            "logprobs": 0,
            "return_token_ids": True,
        }
        async with self._slots:
            said = await self._ask("/v1/completions", asked)
        try:
            [choice] = said["choices"]
            tokens, logprobs = [int(token) for token in choice["token_ids"]], choice["logprobs"]["token_logprobs"]
            values = [float(value) for value in logprobs]
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"vLLM gave no token ids with log-probabilities: {str(said)[:_EXCERPT]}") from error
        if not tokens or len(tokens) != len(values):
            raise EngineError(f"vLLM gave {len(tokens)} tokens with {len(values)} log-probabilities")
        return Completion(tokens, values, truncated=tokens[-1] not in params.stop_token_ids)

    async def _ask(
        self, path: str, body: object, *, ready: Callable[[dict[str, Any]], bool] = lambda said: True
    ) -> dict[str, Any]:
        """The answer to a POST; asked again while ``ready`` says that it is not the last word."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((_Failed, Interrupted))
            | tenacity.retry_if_result(lambda said: not ready(said)),
            stop=Tries(_TRIES),
            wait=tenacity.wait_fixed(_PAUSE_S),
            retry_error_callback=_last,
        )
        return await retrying(self._asked_once, path, body)

    async def _asked_once(self, path: str, body: object) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError("VllmSampler is used outside of its `with` block")
        since = self._server.starts
        try:
            async with self._session.post(self._server.url + path, json=body) as response:
                text = await read_text(response, _MOST_BYTES)
                if response.status < 400:
                    said = parse_json(text) if text else {}
                    return said if isinstance(said, dict) else {}
                failure = f"status {response.status}: {text[:_EXCERPT]}"
                if response.status < 500:
                    raise EngineError(f"vLLM, which samples, refuses `{path}` with {failure}")
        except TimeoutError:
            failure = f"no answer within {self._timeout_s:g} s"
        except (aiohttp.ClientError, TooLongError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        while (again := await asyncio.to_thread(self._server.again, since)) is None:
            await asyncio.sleep(_PAUSE_S)
        if again:
            raise Interrupted
        raise _Failed(failure)

    async def _open(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._server.token}"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            connector=aiohttp.UnixConnector(str(self._at), limit=0),
        )

    async def _leave(self) -> None:
        if self._session is not None:
            await self._session.close()


def hand_over(exported: Exported, folder: Path) -> None:
    """Write the weights into ``folder``, each file in the place of the one before: who still reads that reads on.

    Raises:
        OutputError: they cannot be written.
    """
    fresh = folder / "fresh"
    with output_errors(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        exported.save_pretrained(fresh)
        _write_head_out(fresh)
        for path in sorted(fresh.iterdir()):
            os.replace(path, folder / path.name)


def _write_head_out(folder: Path) -> None:
    """Give a head of its own to a model whose head is its embedding.

    vLLM shares the two when it starts, and when it takes over weights it renews the embedding alone: its head stays
    what it was (0.32.0, `Failed to load weights` of `ParallelLMHead`).
    """
    path, index = folder / "config.json", folder / "model.safetensors.index.json"
    config = read_object(path)
    if not config.get("tie_word_embeddings") or str(config.get("model_type")).startswith(_ALWAYS_TIED):
        return
    weights = hf.HfWeights(folder)
    embedding = next((name for name in weights if name.endswith("embed_tokens.weight")), None)
    if embedding is None:
        return  # of another build: the comparison of log-probabilities tells whether it follows
    save_file({HEAD: weights[embedding].contiguous()}, folder / _HEAD_FILE)
    path.write_text(json.dumps({**config, "tie_word_embeddings": False}))
    if index.exists():
        listed = read_object(index)
        listed["weight_map"][HEAD] = _HEAD_FILE
        index.write_text(json.dumps(listed))


def _nobody(text: str) -> None:
    """What it does while it comes back is for its log."""


def _last(state: tenacity.RetryCallState) -> dict[str, Any]:
    """What the last of all tries gave."""
    assert state.outcome is not None
    error = state.outcome.exception()
    if isinstance(error, _Failed):
        raise EngineError(f"vLLM, which samples, fails: {error}", hint="its log lies beside the run's") from error
    found: dict[str, Any] = state.outcome.result()
    return found
