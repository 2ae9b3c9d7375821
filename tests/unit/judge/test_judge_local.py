"""The judge as a child process: it starts, answers, and never outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pydantic import SecretStr

from nemotron.config.schema.judge import (
    GenrmCompareConfig,
    GenrmModelConfig,
    GenrmResponsesCreateParams,
    JudgeConfig,
)
from nemotron.errors import JudgeError, OutputError
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.local import TOKEN_VARIABLE, LocalJudge, running_judge
from nemotron.judge.pool import JudgePool
from nemotron.judge.types import GroupRequest, JudgedResponse
from nemotron.judge.vllm import VllmJudge
from nemotron.place import Place
from tests import forked
from tests.unit.vllm.stand_in import StandIn

PARENT = """
import sys, time
from nemotron.config.schema.judge import JudgeConfig
from nemotron.judge.local import LocalJudge
with LocalJudge(sys.argv[1], JudgeConfig()) as judge:
    print(judge.pid, flush=True)
    if sys.argv[2] == "loading":
        time.sleep(60)
    judge.endpoint
    print("ready", flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie whose parent (init) has not collected it yet does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_it_judges_and_ends_on_sigterm(tiny_judge: Path) -> None:
    """A random model writes no verdict, so every comparison is missing; that all were answered is what counts here."""
    with LocalJudge(tiny_judge, JudgeConfig()) as judge:
        compare = GenrmCompareConfig(
            genrm_responses_create_params=GenrmResponsesCreateParams(max_output_tokens=4), genrm_parse_retries=0
        )
        with JudgePool(judge.endpoint, JudgeSettings(compare, JudgeConfig()), keeper=judge) as pool:
            request = GroupRequest([{"role": "user", "content": "q"}], [JudgedResponse("", "a")] * 4)
            result = pool.submit(request, seed=1).result(60)
        command = Path(f"/proc/{judge.pid}/cmdline")
        if command.exists():
            assert judge.endpoint.api_key is not None
            assert judge.endpoint.api_key not in command.read_text()
        assert judge.explain() is None
        assert judge.again(1) is False
        pid = judge.pid
        os.kill(pid, signal.SIGTERM)
        assert gone_within(pid, 60)
        assert "died with exit code -15" in (judge.explain() or "")
        with pytest.raises(JudgeError, match="died with exit code -15"):
            judge.again(1)
    assert [comparison.unparseable for comparison in result.comparisons] == [1] * 4
    assert judge.endpoint.base_url.startswith("http://127.0.0.1:")


# At work it is killed by tests/steps/test_rlhf_resume.py, too.
@pytest.mark.parametrize("moment", ["loading", pytest.param("ready", marks=pytest.mark.full)])
def test_kill_9_of_the_parent_ends_the_judge(tiny_judge: Path, moment: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny_judge), moment], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if moment == "ready":
        assert parent.stdout.readline() == "ready\n"
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    # While it is importing torch, the watch thread is as late as the interpreter lets it be.
    assert gone_within(pid, 60)


def test_which_judge_runs(tiny_judge: Path, tmp_path: Path) -> None:
    remote = GenrmModelConfig(model="m", base_url="http://host/v1", api_key=SecretStr("key"))
    with running_judge(remote, JudgeConfig(), Place()) as judge:
        assert judge.wait(print) == Endpoint("http://host/v1", "m", "key")
        assert judge.again(judge.starts) is False
    local = GenrmModelConfig(model=str(tiny_judge))
    with forked.helpers_are_forks(), running_judge(local, JudgeConfig(), Place()) as judge:
        assert isinstance(judge, LocalJudge)
    program = StandIn(tmp_path)
    with running_judge(
        program.judge(), JudgeConfig(server="vllm", vllm_command=str(tmp_path / "environment")), Place()
    ) as judge:
        assert isinstance(judge, VllmJudge)
        assert judge.wait(print).model == "some/judge"
    nowhere = JudgeConfig(server="vllm", vllm_command=str(tmp_path / "nowhere"))
    with pytest.raises(JudgeError, match="there is no program `vllm`"), running_judge(local, nowhere, Place()):
        raise AssertionError("nothing was started")


def test_a_judge_that_cannot_load_says_why(tmp_path: Path) -> None:
    with LocalJudge(tmp_path, JudgeConfig()) as judge, pytest.raises(JudgeError, match=r"exit code 6") as caught:
        assert judge.endpoint
    assert "has no `config.json`" in caught.value.message


def test_a_judge_that_is_not_ready_in_time(tiny_judge: Path) -> None:
    with LocalJudge(tiny_judge, JudgeConfig(ready_timeout_s=0.2)) as judge:
        with pytest.raises(JudgeError, match=r"not ready after 0\.2 s"):
            assert judge.endpoint
        pid = judge.pid
    assert not alive(pid)


def test_a_log_that_cannot_be_written(tiny_judge: Path, tmp_path: Path) -> None:
    judge = LocalJudge(tiny_judge, JudgeConfig(), log_path=tmp_path / "missing" / "judge.log")
    with pytest.raises(OutputError, match=r"judge\.log"):
        judge.__enter__()


def test_importing_the_judge_does_not_import_torch() -> None:
    script = (
        "import sys, nemotron.judge.pool, nemotron.judge.local, nemotron.judge.server.app, nemotron.judge.server.model,"
        " nemotron.judge.server.__main__; print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_token_variable_must_be_set(tiny_judge: Path) -> None:
    command = [sys.executable, "-m", "nemotron.judge.server", "--model", str(tiny_judge), "--token-env", TOKEN_VARIABLE]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == JudgeError.exit_code
    assert TOKEN_VARIABLE in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_are_not_served_without_a_token(tiny_judge: Path, host: str) -> None:
    command = [sys.executable, "-m", "nemotron.judge.server", "--model", str(tiny_judge), "--host", host]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == JudgeError.exit_code
    assert "--token-env" in done.stderr


@pytest.mark.full  # a second real server
def test_a_server_without_a_token_makes_one_up(tiny_judge: Path) -> None:
    command = [sys.executable, "-m", "nemotron.judge.server", "--model", str(tiny_judge)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        url = f"http://127.0.0.1:{said['port']}/v1/models"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=20)
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {said['token']}"})
        assert said["model"] in urllib.request.urlopen(request, timeout=20).read().decode()
        server.terminate()
