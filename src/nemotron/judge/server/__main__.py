"""Serve a judge: ``python -m nemotron.judge.server --model DIR``. Once it is ready, stdout says where, in JSON.

It answers nobody without a bearer token: that of ``--token-env``, or one that it makes up and says there too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import sys
from pathlib import Path

from nemotron.errors import NemotronError
from nemotron.processes import garbage
from nemotron.processes.addresses import stays_here
from nemotron.processes.lifetime import exit_with_parent
from nemotron.processes.parent import tell


def main(argv: list[str] | None = None) -> int:
    """Load the model, listen, and serve until stopped. Exit codes as in nemotron.errors."""
    options = _parser().parse_args(argv)
    garbage.starting()
    exit_with_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    # Thread pools read these when torch is imported. A checkpoint is a folder, so nothing is ever fetched.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    try:
        asyncio.run(_serve(options))
    except NemotronError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nemotron.judge.server", description=__doc__)
    parser.add_argument(
        "--model", required=True, help="folder of a Hugging Face checkpoint, or the name of a cached one"
    )
    parser.add_argument("--served-name", help="name in /v1/models; default: the folder's name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: loopback only")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--dtype", choices=("auto", "float32", "float64", "bfloat16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument("--max-batch-size", type=int, default=64, help="requests decoded together")
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        help="environment variable with the bearer token; without it, on loopback only, a new one stands in stdout",
    )
    return parser


async def _serve(options: argparse.Namespace) -> None:
    from aiohttp import web

    from nemotron.errors import JudgeError
    from nemotron.judge.server.app import ChatServer
    from nemotron.judge.server.model import JudgeModel

    token = os.environ.get(options.token_env) if options.token_env else None
    if options.token_env and not token:
        raise JudgeError(f"`--token-env {options.token_env}`: that environment variable is not set")
    if not token and not stays_here(options.host):
        raise JudgeError(
            f"`--host {options.host}` is open to other machines, and nobody has given a token",
            hint="put a token into an environment variable and name it with `--token-env`",
        )
    made = secrets.token_urlsafe(32)
    model = JudgeModel.load(options.model, dtype=options.dtype, device=options.device, threads=options.threads)
    name = options.served_name or Path(options.model).resolve().name
    server = ChatServer(model, name, max_batch_size=options.max_batch_size, token=token or made)
    runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        raise JudgeError(f"cannot listen on `{options.host}:{options.port}`: {error.strerror}") from error
    port = runner.addresses[0][1]
    said = {"host": options.host, "port": port, "model": name}
    garbage.started()
    tell(sys.stdout, json.dumps(said if token else {**said, "token": made}))
    await asyncio.Event().wait()


if __name__ == "__main__":
    status = main()
    garbage.ending()
    sys.exit(status)
