"""What NeMo-Gym hands to a process of ours, and what that makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemotron.engines.nemo_rl import server
from nemotron.engines.nemo_rl.gym import COMPARE, entrypoint
from nemotron.errors import ConfigError
from nemotron.gym.under_gym import CONFIG_VARIABLE, NAME_VARIABLE, server_of
from tests.unit.engines.nemo_rl.test_config import JUDGE, config_of
from tests.unit.gym.serving import free_port


def environment(*words: str, port: int = 1) -> dict[str, str]:
    """As NeMo-Gym sets it, from the section that NeMo-RL hands on."""
    nemo_rls: Any = OmegaConf.to_container(OmegaConf.create(config_of("rlhf", "default", *words)), resolve=True)
    gym = OmegaConf.create(nemo_rls["env"]["nemo_gym"])
    OmegaConf.update(gym, f"{COMPARE}.resources_servers.genrm_compare.host", "127.0.0.1")
    OmegaConf.update(gym, f"{COMPARE}.resources_servers.genrm_compare.port", port)
    if "genrm_model" in gym:
        OmegaConf.update(gym, "genrm_model.responses_api_models.genrm_model.host", "10.0.0.7")
        OmegaConf.update(gym, "genrm_model.responses_api_models.genrm_model.port", 12000)
    return {CONFIG_VARIABLE: OmegaConf.to_yaml(gym), NAME_VARIABLE: COMPARE}


def test_a_judge_elsewhere_is_asked_with_the_key_of_the_environment() -> None:
    env = environment(f"{JUDGE}.base_url=http://judge:8000/v1", f"{JUDGE}.model=j", "judge.group_timeout_s=9")
    application, host, port = server_of(env)
    made: Any = application.__self__  # type: ignore[attr-defined]
    assert (host, port) == ("127.0.0.1", 1)
    assert (made._endpoint.base_url, made._endpoint.model, made._endpoint.api) == ("http://judge:8000/v1", "j", "chat")
    assert made._settings.compare.num_rollouts_per_prompt == 8
    assert made._gathering._patience_s == 9


def test_a_judge_that_gym_serves_is_asked_where_gym_has_put_it() -> None:
    made: Any = server_of(environment())[0].__self__  # type: ignore[attr-defined]
    assert (made._endpoint.base_url, made._endpoint.api) == ("http://10.0.0.7:12000/v1", "responses")


def test_a_judge_elsewhere_is_asked_as_the_embedded_engine_asks_it() -> None:
    words = (f"{JUDGE}.base_url=http://judge:8000/v1", "judge.prompt=instruct", "judge.verdict=schema")
    made: Any = server_of(environment(*words))[0].__self__  # type: ignore[attr-defined]
    assert (made._settings.form.prompt, made._settings.form.verdict) == ("instruct", "schema")
    by_gym: Any = server_of(environment())[0].__self__  # type: ignore[attr-defined]
    assert (by_gym._settings.form.prompt, by_gym._settings.form.verdict) == ("genrm", "text")


def test_a_judge_beside_the_job_is_asked_where_the_environment_says() -> None:
    """In the form of a server that we start, as the plan has it."""
    env = environment("judge.server=vllm", "judge.prompt=instruct", f"{JUDGE}.model=j")
    told = {"NEMOTRON_JUDGE_URL": "http://n2:9/v1", "NEMOTRON_JUDGE_TOKEN": "token-of-the-job"}
    made: Any = server_of({**env, **told})[0].__self__  # type: ignore[attr-defined]
    found = made._endpoint
    assert (found.base_url, found.model, found.api_key) == ("http://n2:9/v1", "j", "token-of-the-job")
    assert (found.api, made._settings.form.verdict) == ("chat", "logits")
    with pytest.raises(ConfigError, match="NEMOTRON_JUDGE"):
        server_of(env)


@pytest.mark.parametrize("name", [COMPARE, "policy_model", "nothing"])
def test_a_block_that_is_not_ours_is_an_error_of_one_line(name: str) -> None:
    env = environment("judge.comparison_server=nemo_gym")
    with pytest.raises(ConfigError, match="no block of ours"):
        server_of({**env, NAME_VARIABLE: name})


def test_gym_starts_it_with_any_python_in_the_folder_of_a_server_of_its_own(tmp_path: Path) -> None:
    """A relative path, as Gym demands, whatever its depth; our own interpreter takes over, and ends when it is told."""
    folder, elsewhere = tmp_path / "my runs; $x" / "nemo_rl", tmp_path / "gym" / "resources_servers" / "genrm_compare"
    folder.mkdir(parents=True)
    elsewhere.mkdir(parents=True)
    (elsewhere / "nemotron.py").write_text("raise SystemExit('the module of another')")
    program = folder / "server.py"
    program.write_bytes(Path(server.__file__).read_bytes())
    code = str(Path(server.__file__).parents[3])
    program.with_suffix(".json").write_text(json.dumps({"python": sys.executable, "path": code}))
    port = free_port()
    env = {**os.environ, **environment(port=port), "PYTHONPATH": str(elsewhere)}
    line = f"ulimit -Sn 128; exec {sys.executable} {Path(entrypoint(str(folder)))}"
    process = subprocess.Popen(line, shell=True, cwd=elsewhere, env=env, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                    assert json.load(response) == {"status": "ok"}
                # As many connections as a large step has answers.
                limits = Path(f"/proc/{process.pid}/limits").read_text()
                [soft] = [line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")]
                assert int(soft) > 128
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        process.terminate()
        assert process.wait(60) == 0
