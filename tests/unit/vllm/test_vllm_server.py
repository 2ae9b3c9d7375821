"""A server of vLLM that behaves badly: waited for, started again, given up with a reason, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import tenacity

from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig
from nemotron.errors import JudgeError
from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Endpoint, Sampling
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.pool import JudgePool
from nemotron.judge.types import GroupRequest, GroupResult, JudgedResponse
from nemotron.judge.vllm import VllmJudge
from nemotron.place import Place
from nemotron.vllm import server as vllm_server
from tests.unit.vllm.stand_in import How, StandIn

CONFIG = JudgeConfig(max_retries=0, request_timeout_s=30, ready_timeout_s=60, max_concurrent_requests=8)
GROUPS, ANSWERS = 6, 4


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "_FIRST_PAUSE_S", 0.05)


def serving(program: StandIn, config: JudgeConfig = CONFIG, log: Path | None = None) -> VllmJudge:
    return VllmJudge(program.judge(), config, program.program, Place(), beside_policy=False, log_path=log)


def judged(judge: VllmJudge, config: JudgeConfig = CONFIG, *, said: list[str] | None = None) -> list[GroupResult]:
    """Verdicts on all groups, asked for at once."""
    noted = [] if said is None else said
    settings = JudgeSettings(GenrmCompareConfig(num_rollouts_per_prompt=ANSWERS), config)
    request = GroupRequest([{"role": "user", "content": "q"}], [JudgedResponse("", "a")] * ANSWERS)
    with JudgePool(judge.wait(noted.append, noted.append), settings, keeper=judge) as pool:
        futures = [pool.submit(request, seed=seed) for seed in range(GROUPS)]
        return [future.result(120) for future in futures]


def lost(results: list[GroupResult]) -> int:
    return sum(comparison.verdict is None for result in results for comparison in result.comparisons)


def test_it_serves_and_ends_with_its_block(tmp_path: Path) -> None:
    program = StandIn(tmp_path)
    with serving(program) as judge:
        assert lost(judged(judge)) == 0
        assert judge.starts == 1
    assert not program.left()
    [start] = program.starts
    argv, environ = start["argv"], start["environ"]
    assert isinstance(argv, list)
    assert isinstance(environ, dict)
    assert argv[:4] == ["serve", "some/judge", "--served-model-name", "some/judge"]
    # Whoever lists processes sees no token, and its folder of temporary files is gone.
    assert environ["VLLM_API_KEY"] not in " ".join(argv)
    assert not Path(environ["TMPDIR"]).exists()


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_what_was_asked_when_it_died_is_asked_again(tmp_path: Path, how: str) -> None:
    """Without one further try: two deaths in the midst of questions lose none of them."""
    program, said = StandIn(tmp_path, How(lives_cut_short=2, answers=5, how=how)), list[str]()
    with serving(program) as judge:
        results = judged(judge, said=said)
        assert judge.starts == 3
    assert len(results) == GROUPS
    assert lost(results) == 0
    assert sum("started again" in line for line in said) == 2
    assert not program.left()


def test_a_start_that_fails_in_between_is_one_of_the_restarts(tmp_path: Path) -> None:
    program = StandIn(tmp_path, How(lives_cut_short=1, fails_in_lives=(2,)))
    with serving(program) as judge:
        assert lost(judged(judge)) == 0
        assert (judge.starts, len(program.starts)) == (2, 3)


def test_after_the_last_restart_it_is_gone_with_a_reason(tmp_path: Path) -> None:
    program = StandIn(tmp_path, How(lives_cut_short=9, answers=1))
    config = CONFIG.model_copy(update={"max_restarts": 2, "max_retries": 5})
    log = tmp_path / "logs" / "judge.log"
    log.parent.mkdir()
    with serving(program, config, log) as judge, pytest.raises(JudgeError, match="has died 3 times") as caught:
        judged(judge, config)
    assert "exit code 137" in caught.value.message
    assert "max_restarts" in (caught.value.hint or "")
    assert len(program.starts) == 3
    # Each life has a log of its own, so that the words of the first are still there.
    assert sorted(path.name for path in log.parent.iterdir()) == ["judge.2.log", "judge.3.log", "judge.log"]
    assert not program.left()


def test_pauses_between_starts_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "_FIRST_PAUSE_S", 0.2)
    program = StandIn(tmp_path, How(lives_cut_short=1, answers=0, fails_in_lives=(2, 3)))
    with serving(program) as judge:
        assert lost(judged(judge)) == 0
    times = [float(str(start["at"])) for start in program.starts]
    pauses = [after - before for before, after in pairwise(times)]
    assert [pause >= least for pause, least in zip(pauses, (0.2, 0.4, 0.8), strict=True)] == [True] * 3


def test_a_server_that_does_not_start_says_why_and_is_not_started_again(tmp_path: Path) -> None:
    program = StandIn(tmp_path, How(fails_at_start=1))
    with serving(program) as judge, pytest.raises(JudgeError, match="could not serve") as caught:
        judge.wait(print)
    assert "ValueError: no such luck in life 1" in caught.value.message
    assert "vllm_serve_kwargs" in (caught.value.hint or "")
    assert len(program.starts) == 1


def test_a_server_that_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time passes when its words have been heard, however long it takes to say them."""
    program, said = StandIn(tmp_path, How(never_ready=True)), list[str]()

    def clock() -> float:
        return time.monotonic() + (60 if any("Loading the stand-in" in line for line in said) else 0)

    monkeypatch.setattr(vllm_server, "time", SimpleNamespace(monotonic=clock))
    with serving(program) as judge, pytest.raises(JudgeError, match="not ready after 60 s") as caught:
        judge.wait(said.append)
    assert "Loading the stand-in" in caught.value.message
    assert caught.value.hint == "`judge.ready_timeout_s` is how long to wait"
    assert not program.left()


def test_its_port_is_nobody_elses_while_it_loads(tmp_path: Path) -> None:
    program = StandIn(tmp_path, How(never_ready=True))
    with serving(program):
        started(program)
        [start] = program.starts
        argv = start["argv"]
        assert isinstance(argv, list)
        port = int(argv[argv.index("--port") + 1])
        with socket.socket() as other, pytest.raises(OSError, match="already in use"):
            other.bind(("127.0.0.1", port))


def test_another_model_is_found_out(tmp_path: Path) -> None:
    with serving(StandIn(tmp_path, How(serves="another"))) as judge, pytest.raises(JudgeError, match="does not serve"):
        judged(judge)


def test_an_interrupt_while_it_loads_leaves_nothing(tmp_path: Path) -> None:
    program = StandIn(tmp_path, How(never_ready=True))

    def interrupted() -> None:
        with serving(program):
            started(program)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not program.left()


def started(program: StandIn) -> None:
    for attempt in tenacity.Retrying(wait=tenacity.wait_fixed(0.02), stop=tenacity.stop_after_delay(60)):
        with attempt:
            assert program.starts


PARENT = """
import sys
from pathlib import Path
from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.judge.vllm import VllmJudge
from nemotron.place import Place
model = GenrmModelConfig.model_validate_json(sys.argv[1])
with VllmJudge(model, JudgeConfig(), Path(sys.argv[2]), Place(), beside_policy=False) as judge:
    judge.wait(lambda text: None)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_whoever_started_it(tmp_path: Path, number: signal.Signals) -> None:
    program = StandIn(tmp_path)
    words = [sys.executable, "-c", PARENT, program.judge().model_dump_json(exclude_none=True), str(program.program)]
    parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    assert program.left()
    parent.send_signal(number)
    parent.communicate()
    deadline = time.monotonic() + 60
    while program.left() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not program.left()


def test_it_comes_back_while_nobody_asks(tmp_path: Path) -> None:
    """Between two steps of a run, so that the next one need not wait for it."""
    program = StandIn(tmp_path)
    with serving(program) as judge:
        judge.wait(print)
        assert judge.pid is not None
        os.killpg(judge.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while judge.starts < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert judge.starts == 2


def test_questions_that_wait_for_a_restart_are_let_go_when_it_closes(tmp_path: Path) -> None:
    program = StandIn(tmp_path, How(lives_cut_short=1, answers=0, fails_in_lives=tuple(range(2, 50))))
    config = CONFIG.model_copy(update={"max_restarts": 40})

    async def ask(endpoint: Endpoint, keeper: VllmJudge) -> None:
        async with JudgeClient(endpoint, config, keeper=keeper) as client:
            await client.ask([{"role": "user", "content": "q"}], Sampling(8, 0.0, 1.0), seed=1)

    with serving(program, config) as judge:
        endpoint = judge.wait(print)
        began = time.monotonic()
        # The end of an event loop waits for the threads that its tasks have asked.
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(ask(endpoint, judge), 1.0))
        assert time.monotonic() - began < 60
