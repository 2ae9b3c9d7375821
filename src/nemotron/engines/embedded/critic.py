"""PPO's second process: the critic as a child of the actor, elsewhere, or served here alone. Imports no torch."""

from __future__ import annotations

import os
import secrets as random_secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nemotron.config.schema.ppo import CriticConfig, PpoMasterConfig
from nemotron.disk.documents import read_object
from nemotron.engines.base import Attempt
from nemotron.errors import EngineError
from nemotron.job import FILE
from nemotron.processes.addresses import stays_here
from nemotron.processes.cores import usable_cores
from nemotron.rl.threads import ThreadPlan, critic_threads

if TYPE_CHECKING:
    from nemotron.rl.critic.local import RunningCritic

TOKEN_KEY = "critic.token"
ANNOUNCED = "NEMOTRON_CRITIC_FILE"
"""Variable with the file in which a critic on other machines of the same job says where it answers."""


def threads_beside(config: PpoMasterConfig) -> int:
    """Threads of the critic that share this machine with the actor; 0 when it is elsewhere."""
    if _announced() is not None:
        return 0
    beside = config.only is None or stays_here(urlsplit(config.critic.address or "").hostname)
    if not beside:
        return 0
    return critic_threads() if config.critic.threads == "auto" else config.critic.threads


@contextmanager
def running(attempt: Attempt, config: PpoMasterConfig, threads: ThreadPlan) -> Iterator[RunningCritic]:
    """The critic of the config: one that runs elsewhere, or a child process on a free loopback port.

    Raises:
        EngineError: it runs elsewhere, and its address or token is missing.
        OutputError: its log cannot be written.
    """
    # The critic's client needs aiohttp, which an install that only proves configs does not have.
    from nemotron.rl.critic.local import Address, LocalCritic, RemoteCritic

    if (announced := _announced()) is not None:
        yield RemoteCritic(Address(_read_announced(announced, config.critic, attempt), _required(attempt)))
        return
    if config.only == "actor":
        if config.critic.address is None:
            raise EngineError("`only: actor` needs `critic.address`", hint="a critic says where it is when it starts")
        yield RemoteCritic(Address(config.critic.address, _required(attempt)))
        return
    # Nobody else knows this token, and it ends with the run.
    with LocalCritic(
        attempt.run.path / FILE,
        config.critic,
        token=random_secrets.token_urlsafe(32),
        threads=threads.helper,
        log_path=attempt.logs / "critic.log",
        host="127.0.0.1",
        port=0,
    ) as critic:
        yield critic


def _announced() -> Path | None:
    """Where a critic that the same job has started on other machines says where it answers; None without one."""
    name = os.environ.get(ANNOUNCED)
    return Path(name) if name else None


def _read_announced(file: Path, settings: CriticConfig, attempt: Attempt) -> str:
    """Wait for the critic's word. Raises EngineError when it has died, or takes too long."""
    attempt.run.write_status(phase="waiting for the critic")
    failed = file.with_name(f"{file.name}.failed")
    end = time.monotonic() + settings.ready_timeout_s
    while not file.exists():
        if failed.exists():
            log = attempt.logs / "critic.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.is_file() else []
            raise EngineError(f"the critic's side of the job ended: {(last or ['it said nothing'])[0]}", hint=str(log))
        if time.monotonic() > end:
            raise EngineError(
                f"the critic is not ready after {settings.ready_timeout_s:g} s",
                hint="`critic.ready_timeout_s` is how long to wait",
            )
        time.sleep(0.2)
    where = read_object(file)
    return f"http://{where['host']}:{where['port']}"


def serve(attempt: Attempt, config: PpoMasterConfig) -> None:
    """Serve the critic until its actor leaves. Raises EngineError when the actor vanishes or the server fails."""
    from nemotron.rl.critic.local import LocalCritic

    run, settings, token = attempt.run, config.critic, _required(attempt)
    run.write_status(state="running", phase="loading the critic", error=None, exit_code=None)
    with LocalCritic(
        attempt.run.path / FILE,
        settings,
        token=token,
        threads=_lone_threads(settings),
        log_path=attempt.logs / "critic.log",
        host=settings.host,
        port=settings.port,
    ) as critic:
        where = _reachable(critic.address.url)
        run.write_status(phase=f"serving at {where}")
        print(f"the critic answers at {where}; start the actor with `--only actor critic.address=...`", file=sys.stderr)
        code = critic.wait()
        if code:
            raise EngineError(
                f"the critic ended with exit code {code}: {critic.last_words() or 'it said nothing'}",
                hint="the actor's own error may say more; both sides go on from the last checkpoint",
            )
    run.write_status(state="finished", phase=None)


def _lone_threads(settings: CriticConfig) -> int:
    """Threads of a critic that runs alone: all cores, but those of the actor where that must be on this machine."""
    if settings.threads != "auto":
        return settings.threads
    return critic_threads() if stays_here(settings.host) else usable_cores()


def _reachable(url: str) -> str:
    """The address with this machine's name where the server listens on every interface."""
    parts = urlsplit(url)
    return f"http://{socket.gethostname()}:{parts.port}" if parts.hostname in ("0.0.0.0", "::") else url


def _required(attempt: Attempt) -> str:
    from nemotron.rl.critic.local import TOKEN_VARIABLE

    # A job that starts both sides makes a token that nobody has written down.
    token = attempt.secrets.get(TOKEN_KEY) or (os.environ.get(TOKEN_VARIABLE) if _announced() else None)
    if token is None:
        raise EngineError(
            "a critic or an actor that runs alone needs the token of the other",
            hint="set the same `NEMOTRON_CRITIC_TOKEN` in the environment of both",
        )
    return token
