"""Who serves the judge: the choice of `judge.server`, for the plan and for the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemotron.config.schema.judge import JUDGE_MODEL, GenrmModelConfig, JudgeConfig
from nemotron.place import Place
from nemotron.vllm import arguments
from nemotron.vllm.where import get, missing, program_of, unseen, visible_gpus

Server = Literal["vllm", "embedded", "external"]
COMMAND = "judge.vllm_command"


@dataclass(frozen=True, slots=True)
class Serving:
    """Who serves it, and why."""

    server: Server
    why: str
    program: Path | None = None
    """Of vLLM; None where it cannot be found, or not be looked for from here."""

    @property
    def told(self) -> str:
        """For people, of a judge that the run itself starts."""
        if self.server == "vllm":
            return f"child process: `{self.program or 'vllm'} serve` on a free loopback port ({self.why})"
        return f"child process: our own server on a free loopback port ({self.why})"


def choose_server(model: GenrmModelConfig, config: JudgeConfig, place: Place) -> Serving:
    """Who serves the judge of a config in a place. For the embedded engine and the audit: NeMo-Gym has its own vLLM."""
    if model.base_url is not None:
        return Serving("external", "`base_url` says where it answers")
    if config.server == "embedded":
        return Serving("embedded", "`judge.server=embedded`")
    program, hidden = program_of(config.vllm_command, place), unseen(config.vllm_command, place)
    if config.server == "vllm":
        return Serving("vllm", "`judge.server=vllm`", program)
    if not place.has_cuda:
        return Serving("embedded", "no GPU is visible, which vLLM is made for")
    if hidden and config.vllm_command is not None:
        return Serving(
            "vllm", f"`{place.name}` has GPUs, and `{COMMAND}` names a vLLM there", Path(config.vllm_command)
        )
    if program is not None:
        return Serving("vllm", "vLLM is installed and a GPU is visible", program)
    where = f"there is no vLLM at `{config.vllm_command}`" if config.vllm_command else "no `vllm` is on PATH"
    return Serving("embedded", f"`{COMMAND}` names no vLLM there" if hidden else where)


def served_beside(model: GenrmModelConfig | None, config: JudgeConfig | None) -> bool:
    """Whether a job on NeMo-RL gets a vLLM of its own for the judge, on a machine besides those of ``cluster``.

    NeMo-Gym's comparison asks no other judge than the one that it serves itself.
    """
    if model is None or config is None or model.base_url is not None:
        return False
    return config.server == "vllm" and config.comparison_server == "nemotron"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a judge from being served so."""

    key: str
    message: str
    hint: str
    missing: bool = False
    """It is not installed, rather than wrongly said."""


def problems(model: GenrmModelConfig, config: JudgeConfig, place: Place) -> Iterator[Problem]:
    """What keeps the judge from being served as the config says."""
    if config.server == "external" and model.base_url is None:
        message = "no address says where the judge answers"
        yield Problem("judge.server", message, f"set `{JUDGE_MODEL}.base_url`, or `judge.server=auto`")
    if config.server in ("vllm", "embedded") and model.base_url is not None:
        message = f"the judge answers at `{model.base_url}`, so nothing is served here"
        yield Problem("judge.server", message, f"set `{JUDGE_MODEL}.base_url=null`, or `judge.server=external`")
        return
    serving = choose_server(model, config, place)
    if serving.server != "vllm":
        return
    if (lacking := missing(config.vllm_command, place)) is not None:
        yield Problem("judge.server" if config.vllm_command is None else COMMAND, lacking, get(COMMAND), missing=True)
    if config.dtype == "float64":
        yield Problem("judge.dtype", "vLLM does not compute in float64", "set `judge.dtype=float32`, or `auto`")
    there = len(visible_gpus()) if place.is_here else place.gpus_per_node
    yield from _sizes(model, there if place.has_cuda else None, "can be seen")


def problems_beside(model: GenrmModelConfig, config: JudgeConfig, place: Place) -> Iterator[Problem]:
    """What keeps the judge of a job on NeMo-RL from being served on a machine of its own; see `served_beside`."""
    if place.judge_gpus is None:
        where = "this machine gives" if place.is_here else f"the profile `{place.name}` names"
        yield Problem(
            "judge.server",
            f"with NeMo-RL `judge.server=vllm` is a `vllm serve` on a machine besides `cluster`, and {where} none",
            "name one as `judge` of a Slurm profile, e.g. `judge = { gpus_per_node = 8 }`; or set `judge.server=auto` "
            f"for the vLLM of NeMo-Gym, or `{JUDGE_MODEL}.base_url` to a judge that answers already",
        )
        return
    if (lacking := missing(config.vllm_command, place)) is not None:
        hint = f"name the `vllm` of that machine or of its image: `{COMMAND}=DIR`"
        yield Problem("judge.server" if config.vllm_command is None else COMMAND, lacking, hint, missing=True)
    if config.dtype == "float64":
        yield Problem("judge.dtype", "vLLM does not compute in float64", "set `judge.dtype=float32`, or `auto`")
    # A machine without any is one whose vLLM computes on processors.
    yield from _sizes(model, place.judge_gpus or None, "are those of `judge` in the profile")


def _sizes(model: GenrmModelConfig, there: int | None, where: str) -> Iterator[Problem]:
    """Of the judge's settings, what it cannot be started with on so many GPUs; None where their number is open."""
    settings = model.vllm_serve_kwargs.settings if model.vllm_serve_kwargs else {}
    for name in settings:
        if name.replace("-", "_") in arguments.OURS:
            key = f"{JUDGE_MODEL}.vllm_serve_kwargs.{name}"
            yield Problem(key, "where and as what the judge answers is chosen when it is started", "leave it out")
    wanted = arguments.gpus(settings)
    if there is not None and wanted > there:
        message = f"the judge's sizes want {wanted} GPUs, {there} {where}"
        key = next(
            (f"{JUDGE_MODEL}.vllm_serve_kwargs.{n}" for n in arguments.PARALLEL_SIZES if (settings.get(n) or 1) != 1),
            "judge.server",
        )
        yield Problem(key, message, f"make their product at most {there}")
