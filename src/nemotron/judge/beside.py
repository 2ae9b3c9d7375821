"""Serve the judge of a run to other machines of its job: ``python -m nemotron.judge.beside --job RUN/job.json``.

``vllm serve`` with what the config says of it. Once it answers, a file says where; when it ends, so does this process,
and it is not started again: what was asked meanwhile is lost to whoever asked.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from socket import gethostname

from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.disk.atomic import write_atomic
from nemotron.errors import JudgeError, NemotronError
from nemotron.job import read_job
from nemotron.judge.announced import TOKEN_VARIABLE
from nemotron.judge.serving import COMMAND
from nemotron.judge.vllm import serve_judge
from nemotron.outcome import print_error
from nemotron.place import Place
from nemotron.vllm.server import VllmServer
from nemotron.vllm.where import get, program_of

EVERYWHERE = "0.0.0.0"
_POLL_S = 1.0


def main(argv: list[str] | None = None) -> int:
    """Serve until somebody ends this process, or the judge ends. Exit codes as in nemotron.errors."""
    parser = argparse.ArgumentParser(prog="python -m nemotron.judge.beside", description=__doc__)
    parser.add_argument("--job", required=True, type=Path, help="job.json of the run")
    parser.add_argument("--announce", required=True, type=Path, metavar="FILE", help="write where it answers into it")
    parser.add_argument("--log", required=True, type=Path, metavar="FILE", help="what vLLM says")
    options = parser.parse_args(argv)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        _serve(options.job, options.announce, options.log, ended)
    except NemotronError as error:
        print_error(error)
        return error.exit_code
    return 0


def _serve(job: Path, announce: Path, log: Path, ended: threading.Event) -> None:
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise JudgeError(f"the environment has no {TOKEN_VARIABLE}", hint="the script of the job makes it")
    model, settings = _config(job)
    place = Place.this_machine()
    program = program_of(settings.vllm_command, place)
    if program is None:
        raise JudgeError(
            f"there is no program `vllm` at `{settings.vllm_command or 'PATH'}` on `{gethostname()}`", hint=get(COMMAND)
        )
    server = VllmServer(
        f"the judge `{model.model}`",
        serve_judge(model, settings, program, place, beside_policy=False),
        failure=JudgeError,
        ready_timeout_s=settings.vllm_ready_s,
        ready_key="judge.ready_timeout_s",
        max_restarts=0,
        log_path=log,
        host=EVERYWHERE,
        token=token,
    )
    with server:
        server.wait(lambda said: print(said, file=sys.stderr, flush=True))
        where = {"base_url": f"http://{gethostname()}:{server.port}/v1"}
        write_atomic(announce, json.dumps(where).encode())
        print(f"the judge answers at {where['base_url']}", file=sys.stderr, flush=True)
        while not ended.wait(_POLL_S):
            server.again(server.starts)


def _config(job: Path) -> tuple[GenrmModelConfig, JudgeConfig]:
    from nemotron.config.schema.extras import JudgedGrpoConfig

    config = read_job(job).settings(JudgedGrpoConfig)
    return config.env.required_judge(), config.judge


if __name__ == "__main__":
    sys.exit(main())
