"""Sets the scene for PPO: threads, the critic's process, then the actor; or the critic alone.

Nothing here imports torch before the thread environment is set: its libraries read it once, when they are loaded.
"""

from __future__ import annotations

import secrets as random_secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nemotron.config.schema.ppo import CriticConfig, PpoMasterConfig
from nemotron.errors import EngineError
from nemotron.rl.threads import ThreadPlan, plan_threads, set_environment, usable_cores
from nemotron.runs.folder import RunFolder

if TYPE_CHECKING:
    from nemotron.rl.critic.local import RunningCritic

TOKEN_KEY = "critic.token"


def run(run: RunFolder, secrets: Mapping[str, str]) -> None:
    """Do the job of ``run`` with the embedded engine. ``secrets``: by config key.

    Raises:
        NemotronError: of every kind.
    """
    config = PpoMasterConfig.model_validate(run.job()["config"])
    token = secrets.get(TOKEN_KEY)
    if config.only == "critic":
        _serve(run, config, _required(token))
        return
    beside = config.only is None or _here(urlsplit(config.critic.address or "").hostname)
    threads = plan_threads(local_judge=beside)
    set_environment(threads.policy)
    # The critic starts first: it loads its models on its own core while this process imports torch.
    with _critic(run, config, token, threads) as critic:
        from nemotron.engines.embedded_ppo import run_job

        run_job(run, config, critic, threads)


@contextmanager
def _critic(run: RunFolder, config: PpoMasterConfig, token: str | None, threads: ThreadPlan) -> Iterator[RunningCritic]:
    """The critic of the config: one that runs elsewhere, or a child process on a free loopback port."""
    # The critic's client needs aiohttp, which an install that only proves configs does not have.
    from nemotron.rl.critic.local import Address, LocalCritic, RemoteCritic

    if config.only == "actor":
        if config.critic.address is None:
            raise EngineError("`only: actor` needs `critic.address`", hint="a critic says where it is when it starts")
        yield RemoteCritic(Address(config.critic.address, _required(token)))
        return
    own = threads.judge if config.critic.threads == "auto" else config.critic.threads
    # Nobody else knows this token, and it ends with the run.
    with LocalCritic(
        run.path / "job.json",
        config.critic,
        token=random_secrets.token_urlsafe(32),
        threads=own,
        log_path=run.logs / "critic.log",
        host="127.0.0.1",
        port=0,
    ) as critic:
        yield critic


def _serve(run: RunFolder, config: PpoMasterConfig, token: str) -> None:
    """Serve the critic until its actor leaves. Raises EngineError when the actor vanishes or the server fails."""
    from nemotron.rl.critic.local import LocalCritic

    settings = config.critic
    run.write_status(state="running", phase="loading the critic", error=None, exit_code=None)
    with LocalCritic(
        run.path / "job.json",
        settings,
        token=token,
        threads=_lone_threads(settings),
        log_path=run.logs / "critic.log",
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


def _here(host: str | None) -> bool:
    """Whether only processes of this machine can be meant."""
    return host in ("127.0.0.1", "::1", "localhost")


def _lone_threads(settings: CriticConfig) -> int:
    """Threads of a critic that runs alone: all cores, but those of the actor where that must be on this machine."""
    if settings.threads != "auto":
        return settings.threads
    return plan_threads(local_judge=True).judge if _here(settings.host) else usable_cores()


def _reachable(url: str) -> str:
    """The address with this machine's name where the server listens on every interface."""
    parts = urlsplit(url)
    return f"http://{socket.gethostname()}:{parts.port}" if parts.hostname in ("0.0.0.0", "::") else url


def _required(token: str | None) -> str:
    if token is None:
        raise EngineError(
            "a critic or an actor that runs alone needs the token of the other",
            hint="set the same `NEMOTRON_CRITIC_TOKEN` in the environment of both",
        )
    return token
