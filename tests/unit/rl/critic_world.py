"""A critic server on a free port in a thread of the test, with small real models."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

from nemotron.config.schema.ppo import CriticConfig, RewardSourceConfig, ValueConfig, ValueLossConfig
from nemotron.errors import EngineError
from nemotron.rl.critic.local import Address, RemoteCritic
from nemotron.rl.critic.models import CriticModels
from nemotron.rl.critic.server import CriticServer, Models
from nemotron.rl.scalar_model import ScalarModel
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

TOKEN = "a token of the tests"
CONFIG = "hash of a config"
CRITIC: dict[str, Any] = {
    "address": None,
    "token": None,
    "host": "127.0.0.1",
    "port": 0,
    "request_timeout_s": 20.0,
    "max_retries": 2,
    "ready_timeout_s": 20.0,
    "heartbeat_s": 3.0,
    "max_request_mib": 1,
    "offload": "none",
    "threads": 1,
}


def critic_config(**changes: Any) -> CriticConfig:
    return CriticConfig.model_validate({**CRITIC, **changes})


def value_config(folder: Path, **changes: Any) -> ValueConfig:
    values = {
        "model_name": str(folder),
        "tokenizer": {"name": str(folder)},
        "precision": "float32",
        "max_total_sequence_length": 64,
        "make_sequence_length_divisible_by": 1,
        "train_global_batch_size": 4,
        "train_micro_batch_size": 2,
        "max_grad_norm": 1.0,
        "optimizer": {"name": "torch.optim.AdamW", "kwargs": {"lr": 0.001}},
        "reward_model_cfg": {"enabled": True, "reward_model_type": "regression"},
        "dtensor_cfg": {"enabled": False},
        "dynamic_batching": {"enabled": False},
    }
    return ValueConfig.model_validate({**values, **changes})


def write_reward_model(folder: Path, seed: int = 3) -> Path:
    """A reward model with stored mean 0.5 and standard deviation 2."""
    torch.manual_seed(seed)
    model = ScalarModel.from_policy(tiny_policy(seed), seed=seed)
    torch.nn.init.normal_(model.model.score.weight, std=0.5)
    model.set_reward_statistics(0.5, 2.0)
    tokenizer = tiny_chat().tokenizer
    tokenizer.pad_token = "<unk>"
    model.save(folder, tokenizer)
    return folder


def critic_models(
    folder: Path, checkpoints: Path | None = None, value: dict[str, Any] | None = None, **changes: Any
) -> CriticModels:
    """``value``: changes of that section; ``changes``: of the server's."""
    return CriticModels.load(
        value_config(folder, **(value or {})),
        ValueLossConfig(scale=1.0, cliprange=0.2),
        RewardSourceConfig(model_name=str(folder), standardize=True),
        critic_config(**changes),
        checkpoints,
    )


class Served:
    """A running server."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop, runner: web.AppRunner) -> None:
        self.url, self.loop, self.runner = url, loop, runner
        self.end: EngineError | None = None
        self.ended = threading.Event()

    @property
    def critic(self) -> RemoteCritic:
        return RemoteCritic(Address(self.url, TOKEN))

    def vanish(self) -> None:
        """Break every connection, as the death of the process does."""
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)


@contextlib.contextmanager
def serving(models: Models, *, heartbeat_s: float = 3.0) -> Iterator[Served]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = CriticServer(models, token=TOKEN, config=CONFIG, max_request_mib=1, heartbeat_s=heartbeat_s, threads=1)

    async def start() -> Served:
        runner = web.AppRunner(server.application(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        served = Served(f"http://127.0.0.1:{runner.addresses[0][1]}", loop, runner)

        async def note() -> None:
            served.end = await server.ended()
            served.ended.set()

        served.note = asyncio.ensure_future(note())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return served

    served = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield served
    finally:
        served.vanish()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
