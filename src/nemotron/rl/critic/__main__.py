"""Serve reward model and critic of a run: ``python -m nemotron.rl.critic --job RUN/job.json``.

Once both can be asked, stdout says where, in JSON. The process ends with the actor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from nemotron.disk.atomic import write_atomic
from nemotron.errors import EngineError, NemotronError
from nemotron.processes import garbage
from nemotron.processes.lifetime import exit_with_parent
from nemotron.processes.parent import tell
from nemotron.rl.threads import thread_environment

if TYPE_CHECKING:
    from nemotron.config.schema.ppo import PpoMasterConfig


def main(argv: list[str] | None = None) -> int:
    """Load, listen, serve until the actor leaves. Exit codes as in nemotron.errors."""
    options = _parser().parse_args(argv)
    garbage.starting()
    if options.announce is None:
        # A scheduler gives its tasks a pipe that nobody writes into: there the actor alone is what it lives for.
        exit_with_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    # Thread pools read these when torch is imported. What the run needs is fetched by the actor or lies on disk.
    os.environ.update(thread_environment(options.threads))
    try:
        asyncio.run(_serve(options))
    except NemotronError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nemotron.rl.critic", description=__doc__)
    parser.add_argument("--job", required=True, type=Path, help="job.json of the run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: loopback only")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the models")
    parser.add_argument("--announce", type=Path, metavar="FILE", help="write where it answers into this file, too")
    parser.add_argument("--token-env", metavar="NAME", required=True, help="environment variable with the bearer token")
    return parser


async def _serve(options: argparse.Namespace) -> None:
    from aiohttp import web

    from nemotron.rl.critic.models import CriticModels
    from nemotron.rl.critic.server import CriticServer

    token = os.environ.get(options.token_env)
    if not token:
        raise EngineError(f"`--token-env {options.token_env}`: that environment variable is not set")
    config = _config(options.job)
    settings = config.critic
    checkpoints = Path(config.checkpointing.checkpoint_dir)
    with_critic = config.learns_values
    models = CriticModels.load(
        config.value, config.value_loss_fn, config.reward_model, settings, checkpoints, with_critic=with_critic
    )
    server = CriticServer(
        models,
        token=token,
        config=config.agreement(),
        max_request_mib=settings.max_request_mib,
        heartbeat_s=settings.heartbeat_s,
        threads=options.threads,
    )
    runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        raise EngineError(
            f"cannot listen on `{options.host}:{options.port}`: {error.strerror or error}",
            hint="`critic.host` and `critic.port` say where the critic listens",
        ) from error
    ended = asyncio.ensure_future(server.ended())
    where = {"host": options.host, "port": runner.addresses[0][1]}
    if options.announce is not None:
        # Whoever reads it is on another machine: the name of this one is what they need.
        everywhere = options.host in ("0.0.0.0", "::")
        write_atomic(
            options.announce, json.dumps({**where, **({"host": gethostname()} if everywhere else {})}).encode()
        )
    garbage.started()
    tell(sys.stdout, json.dumps(where))
    reason = await ended
    if reason is not None:
        raise reason


def _config(job: Path) -> PpoMasterConfig:
    from nemotron.config.schema.ppo import PpoMasterConfig
    from nemotron.job import read_job

    return read_job(job).settings(PpoMasterConfig)


if __name__ == "__main__":
    # A computation may still run in its thread; nobody wants its result.
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
