"""Who serves the judge, and what the dry run says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.judge.serving import choose_server, problems
from nemotron.place import Place
from tests.in_process import nemotron
from tests.unit.vllm.stand_in import StandIn

HERE = Place()
CLUSTER = Place(name="slurm", is_here=False, has_cuda=True, gpus_per_node=8, shared=(Path("/shared"),))
BLOCK = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
RUN = ("steps", "run", "rl/nemo_rl/rlhf", "-c", "tiny", "-d")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of an environment with a program `vllm`; none is found elsewhere."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("RL_VLLM", raising=False)
    return str(StandIn(tmp_path).program.parents[1])


def chosen(place: Place, base_url: str | None = None, **asked: Any) -> tuple[str, str]:
    found = choose_server(GenrmModelConfig(model="m", base_url=base_url), JudgeConfig(**asked), place)
    return found.server, found.why


def test_which_server_and_why(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = replace(HERE, has_cuda=True)
    assert chosen(HERE, "http://host/v1") == ("external", "`base_url` says where it answers")
    assert chosen(HERE, vllm_command=environment) == ("embedded", "no GPU is visible, which vLLM is made for")
    assert chosen(gpu) == ("embedded", "no `vllm` is on PATH")
    assert chosen(gpu, vllm_command="/no") == ("embedded", "there is no vLLM at `/no`")
    assert chosen(gpu, vllm_command=environment) == ("vllm", "vLLM is installed and a GPU is visible")
    assert chosen(gpu, server="embedded", vllm_command=environment)[0] == "embedded"
    assert chosen(HERE, server="vllm")[0] == "vllm"
    monkeypatch.setenv("PATH", f"{environment}/bin")
    assert chosen(gpu) == ("vllm", "vLLM is installed and a GPU is visible")


def test_of_a_cluster_only_what_is_said_is_known(environment: str) -> None:
    assert chosen(CLUSTER) == ("embedded", "`judge.vllm_command` names no vLLM there")
    assert chosen(CLUSTER, vllm_command="/opt/vllm")[0] == "vllm"
    # A folder that is the same folder here is looked at.
    assert chosen(CLUSTER, vllm_command="/shared/vllm")[0] == "embedded"
    said = {"vllm_command": "/opt/vllm", "server": "vllm"}
    assert not list(problems(GenrmModelConfig(model="m"), JudgeConfig.model_validate(said), CLUSTER))
    said["vllm_command"] = "/shared/vllm"
    [problem] = problems(GenrmModelConfig(model="m"), JudgeConfig.model_validate(said), CLUSTER)
    assert (problem.key, problem.missing) == ("judge.vllm_command", True)


def test_the_plan_says_who_serves_and_why(environment: str) -> None:
    shown = nemotron(*RUN, "judge.server=vllm", f"judge.vllm_command={environment}")
    assert shown.code == 0, shown.stderr
    assert f"`{environment}/bin/vllm serve` on a free loopback port (`judge.server=vllm`)" in shown.stdout
    plain = nemotron(*RUN)
    assert "our own server on a free loopback port (no GPU is visible, which vLLM is made for)" in plain.stdout
    by_variable = nemotron(*RUN, "judge.server=vllm", env={"RL_VLLM": environment})
    assert by_variable.code == 0, by_variable.stderr


@pytest.mark.parametrize(
    ("words", "code", "key", "said"),
    [
        (["judge.server=vllm"], 10, "judge.server=vllm", "`vllm` is neither on PATH nor beside this Python"),
        (["judge.server=vllm", "judge.vllm_command=/no"], 10, "argument 8", "there is no program `vllm` at `/no`"),
        (["judge.server=external"], 3, "argument 7", "no address says where the judge answers"),
        (["judge.server=vllm", f"{BLOCK}.base_url=http://h/v1"], 3, "argument 7", "so nothing is served here"),
        (["judge.server=embedded", f"{BLOCK}.base_url=http://h/v1"], 3, "argument 7", "so nothing is served here"),
        (["judge.server=vllm", "judge.vllm_command=ENV", "judge.dtype=float64"], 3, "argument 9", "float64"),
        (
            ["judge.server=vllm", "judge.vllm_command=ENV", f"{BLOCK}.vllm_serve_kwargs={{port: 8000}}"],
            *(3, "argument 9", "where and as what the judge answers is chosen when it is started"),
        ),
        (["judge.max_restarts=1"], 3, "argument 7", "`judge.max_restarts` has no effect"),
        ([f"{BLOCK}.vllm_serve_kwargs={{max_model_len: 64}}"], 3, "argument 7", "has no effect"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    environment: str, words: list[str], code: int, key: str, said: str
) -> None:
    done = nemotron(*RUN, *(word.replace("ENV", environment) for word in words))
    assert done.code == code, done.stderr
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert key.partition("=")[0] in done.stderr


def test_more_gpus_than_there_are(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    block = GenrmModelConfig.model_validate({"model": "m", "vllm_serve_kwargs": {"tensor_parallel_size": 2}})
    config = JudgeConfig(vllm_command=environment)
    [problem] = problems(block, config, replace(HERE, has_cuda=True))
    assert problem.key == f"{BLOCK}.vllm_serve_kwargs.tensor_parallel_size"
    assert "2 GPUs, 1 can be seen" in problem.message
