"""A resources server of ours as a process that NeMo-Gym starts: ``python -m nemotron.gym.under_gym``.

NeMo-Gym hands a process its whole config and the name of its block in two environment variables. What of ours the block
has stands below ``nemotron`` in it; the keys beside are those of the server that it stands in for.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from nemotron.config.schema.judge import GenrmCompareConfig, GenrmModelConfig, JudgeConfig
from nemotron.config.schema.rewards import RewardConfig
from nemotron.errors import ConfigError, NemotronError
from nemotron.gym.comparison import ComparisonServer
from nemotron.gym.functions import RewardsServer
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.form import form_of
from nemotron.judge.groups import JudgeSettings
from nemotron.outcome import print_error

CONFIG_VARIABLE = "NEMO_GYM_CONFIG_DICT"
NAME_VARIABLE = "NEMO_GYM_CONFIG_PATH"
OURS = "nemotron"
"""The key in the block."""
END_S = 0.5
OPEN_FILES = 65_536
BACKLOG = 2_048
"""Connections that wait to be taken: those of a step come at once."""


class JudgeAddress(BaseModel):
    """Where the judge answers when NeMo-Gym does not serve it."""

    base_url: str | None = None
    base_url_variable: str | None = None
    """The environment variable that says it, of a judge whose address is known when the job runs."""
    model: str
    api_key_variable: str | None = None
    """The environment variable that holds the token: NeMo-Gym writes its config to every process and log."""
    supports_principle_role: bool = True


class OurBlock(BaseModel):
    """What of ours a block has; either a judge or reward functions."""

    judge: JudgeConfig | None = None
    endpoint: JudgeAddress | None = None
    rewards: RewardConfig | None = None


def main() -> int:
    """Serve until NeMo-Gym ends the process."""
    _allow_connections()
    try:
        application, host, port = server_of(os.environ)
        # What has been imported stays: looking through it for garbage is a tenth of the time of a busy server.
        gc.collect()
        gc.freeze()
        web.run_app(
            application(),
            host=host,
            port=port,
            access_log=None,
            print=None,
            handler_cancellation=True,
            shutdown_timeout=END_S,
            backlog=BACKLOG,
        )
    except NemotronError as error:
        print_error(error)
        return error.exit_code
    return 0


def _allow_connections() -> None:
    """Every answer of a step waits on a connection of its own, which is more than a shell allows by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def server_of(env: Mapping[str, str]) -> tuple[Callable[[], web.Application], str, int]:
    """The application that NeMo-Gym asks for, and where it has to listen.

    Raises:
        ConfigError: the variables are not NeMo-Gym's, or the block is not one that we wrote.
    """
    try:
        config: Any = OmegaConf.to_container(OmegaConf.create(env[CONFIG_VARIABLE]), resolve=True)
        block = _block(config, env[NAME_VARIABLE])
        ours = OurBlock.model_validate(block[OURS])
        host, port = str(block["host"]), int(block["port"])
        if ours.rewards is not None:
            return RewardsServer(ours.rewards).application, host, port
        compare = GenrmCompareConfig.model_validate({key: value for key, value in block.items() if key != OURS})
        endpoint = _endpoint(config, block, ours.endpoint, env)
    except (KeyError, TypeError, ValueError, ValidationError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"NeMo-Gym's config has no block of ours at `{env.get(NAME_VARIABLE)}`: {error}",
            hint="this program is started by NeMo-Gym, with the config that `engine=nemo_rl` writes",
        ) from error
    requests = ours.judge or JudgeConfig()
    settings = JudgeSettings(compare, requests)
    if ours.endpoint is not None:
        # As the embedded engine asks it. What NeMo-Gym serves knows a GenRM's roles, and leaves a principle out itself.
        model = GenrmModelConfig.model_validate(
            ours.endpoint.model_dump(exclude={"api_key_variable", "base_url_variable"})
        )
        settings = replace(
            settings, supports_principle_role=model.supports_principle_role, form=form_of(model, requests)
        )
    server = ComparisonServer(endpoint, settings, patience_s=settings.requests.group_timeout_s)
    return server.application, host, port


def _block(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The block of a server: below its kind and its implementation."""
    [kind] = config[name].values()
    [block] = kind.values()
    return dict(block)


def _endpoint(
    config: Mapping[str, Any], block: Mapping[str, Any], given: JudgeAddress | None, env: Mapping[str, str]
) -> Endpoint:
    if given is not None:
        key = env[given.api_key_variable] if given.api_key_variable else None
        address = env[given.base_url_variable] if given.base_url_variable else given.base_url
        if address is None:
            raise ValueError("`endpoint` says neither where the judge answers nor which variable does")
        return Endpoint(address, given.model, key)
    served = _block(config, block["genrm_model_server"]["name"])
    return Endpoint(f"http://{served['host']}:{served['port']}/v1", str(served.get("model")), None, "responses")


if __name__ == "__main__":
    sys.exit(main())
