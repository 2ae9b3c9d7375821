"""The judge on another machine of a job: it says where it answers, and nobody trains without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.engines.worker import work
from nemotron.errors import JudgeError, NemotronError
from nemotron.judge.announced import Announced
from nemotron.runs.folder import RunFolder
from tests.in_process import Result, nemotron
from tests.unit.compile.compile_world import NODE
from tests.unit.engines.nemo_rl.world import make_run, make_tree
from tests.unit.vllm.stand_in import How, StandIn

TOKEN = "token-of-the-job-0123456789"
CLUSTER = replace(NODE, is_here=False, name="slurm", judge_gpus=0)
MODEL = "some/judge"


def until(true: Callable[[], object], limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Job:
    """A run of rlhf, and its judge as the script of a job starts it."""

    def __init__(self, folder: Path, how: How) -> None:
        self.vllm = StandIn(folder, how)
        variables = [f"+{JUDGE_MODEL}.vllm_serve_env_vars.{name}={json.dumps(value)}" for name, value in self.told]
        words = ("judge.server=vllm", f"judge.vllm_command={self.vllm.program}", f"{JUDGE_MODEL}.model={MODEL}")
        sizes = ("grpo.max_num_steps=2", "checkpointing.save_period=1")
        self.run: RunFolder = make_run(
            folder / "runs", *words, *variables, *sizes, step="rlhf", name="default", place=CLUSTER
        )
        self.logs = self.run.path / "attempts" / "1" / "logs"
        self.logs.mkdir(parents=True)
        self.announced, self.log = self.logs.parent / "judge.json", self.logs / "judge.log"
        self.failed = self.announced.with_name("judge.json.failed")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def told(self) -> list[tuple[str, str]]:
        return list(self.vllm.variables.items())

    @property
    def nemo_rl_log(self) -> str:
        """Of all attempts."""
        return "".join(path.read_text() for path in self.run.path.glob("attempts/*/logs/nemo_rl.log"))

    def start(self, token: str | None = TOKEN) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "nemotron.judge.beside", "--job", str(self.run.path / "job.json")]
        argv += ["--announce", str(self.announced), "--log", str(self.logs / "vllm.log")]
        env = {name: value for name, value in os.environ.items() if name != "NEMOTRON_JUDGE_TOKEN"}
        env |= {"NEMOTRON_JUDGE_TOKEN": token} if token else {}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, env=env, stderr=log)
        return self.process

    def ends_as_its_script_says(self) -> None:
        """What the script does when the task of the judge has ended."""
        assert self.process is not None
        self.process.wait(120)
        self.failed.touch()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    made: list[Job] = []

    def make(**how: object) -> Job:
        made.append(Job(tmp_path, How(**how)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def models(base_url: str, token: str) -> list[str]:
    asked = urllib.request.Request(f"{base_url}/models", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return [entry["id"] for entry in json.load(answer)["data"]]


def test_it_says_where_it_answers_and_asks_for_the_token_of_the_job(job: Callable[..., Job]) -> None:
    made = job()
    process = made.start()
    until(made.announced.exists)
    where = json.loads(made.announced.read_text())["base_url"]
    assert models(where, TOKEN) == [MODEL]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        models(where, "another")
    [started] = made.vllm.starts
    assert "0.0.0.0" in started["argv"]  # type: ignore[operator]
    assert TOKEN not in "".join(path.read_text() for path in made.run.path.rglob("*") if path.is_file())
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert made.vllm.left() == []


def test_one_that_dies_is_not_started_again_and_says_why(job: Callable[..., Job]) -> None:
    made = job()
    process = made.start()
    until(made.announced.exists)
    os.kill(made.vllm.left()[0], signal.SIGKILL)
    assert process.wait(120) == JudgeError.exit_code
    assert "error: vLLM, which serves the judge `some/judge`, has died once" in made.log.read_text()
    assert len(made.vllm.starts) == 1


@pytest.mark.parametrize(
    ("how", "token", "words"),
    [
        ({"fails_at_start": 9}, TOKEN, "no such luck in life 1"),
        ({}, None, "the environment has no NEMOTRON_JUDGE_TOKEN"),
    ],
)
def test_one_that_does_not_start_says_why(
    job: Callable[..., Job], how: dict[str, object], token: str | None, words: str
) -> None:
    made = job(**how)
    assert made.start(token).wait(120) == JudgeError.exit_code
    assert words in made.log.read_text()
    assert not made.announced.exists()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], None]:
    """The environment of the run in a job that has a judge."""

    def tell(made: Job) -> None:
        monkeypatch.setenv("NEMOTRON_JUDGE_FILE", str(made.announced))
        monkeypatch.setenv("NEMOTRON_JUDGE_TOKEN", TOKEN)

    return tell


def ended(made: Job) -> NemotronError:
    with pytest.raises(NemotronError) as caught:
        work(made.run, {})
    assert (made.run.status().state, made.run.status().error) == ("failed", caught.value.message)
    return caught.value


def test_a_run_waits_for_its_judge_and_tells_nemo_rl_where_it_is(
    job: Callable[..., Job], told: Callable[[Job], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job()
    make_tree(tmp_path / "tree", monkeypatch, "fine")
    told(made)
    threading.Timer(1.0, made.start).start()
    assert work(made.run, {}) == 0
    where = json.loads(made.announced.read_text())["base_url"]
    assert f"'NEMOTRON_JUDGE_URL': '{where}'" in made.nemo_rl_log
    assert where not in (made.run.path / "nemo_rl" / "config.yaml").read_text()


@pytest.mark.parametrize("how", ["hangs", "asks", "misses"])
def test_a_judge_that_dies_ends_the_run_with_its_words(
    job: Callable[..., Job], told: Callable[[Job], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whoever is first: NeMo-RL fails for want of its answers before the script says that the judge has ended."""
    made = job()
    make_tree(tmp_path / "tree", monkeypatch, how)
    told(made)
    made.start()

    def kill() -> None:
        until(lambda: any(row["step"] == 1 for row in made.run.read_metrics()))
        os.kill(made.vllm.left()[0], signal.SIGKILL)
        if how != "hangs":
            time.sleep(1.5)
        made.ends_as_its_script_says()

    killer = threading.Thread(target=kill)
    killer.start()
    error = ended(made)
    killer.join()
    assert isinstance(error, JudgeError)
    assert error.message.startswith("the judge of this job has ended: vLLM, which serves the judge `some/judge`, has")
    assert error.hint is not None
    assert "judge.log" in error.hint


def test_nemo_rl_is_not_started_without_the_judge(
    job: Callable[..., Job], told: Callable[[Job], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(fails_at_start=9)
    make_tree(tmp_path / "tree", monkeypatch, "fine")
    monkeypatch.delenv("NEMOTRON_JUDGE_FILE", raising=False)
    error = ended(made)
    assert "this job has none" in error.message
    told(made)
    made.start()
    made.ends_as_its_script_says()
    assert "no such luck in life 1" in ended(made).message
    assert made.nemo_rl_log == ""


def test_a_judge_that_never_says_where_it_is_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    ticks = iter(range(0, 10_000, 30))
    found = Announced(tmp_path / "judge.json")
    with pytest.raises(JudgeError, match="not ready after 100 s"):
        found.wait(100.0, clock=lambda: next(ticks))


def test_the_plan_shows_the_machine_its_script_and_that_the_token_travels_in_the_open(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    profile = tmp_path / "profiles" / "two.toml"
    lines = ['executor = "slurm"', 'partition = "p"', "gpus_per_node = 1", f'remote_job_dir = "{tmp_path}/shared"']
    words = ("steps", "run", "rlhf", "-c", "tiny", "engine=nemo_rl", "--dry-run", "-b", "two")
    words += ("eval.heldout=null", "cluster.gpus_per_node=1", "policy.megatron_cfg.optimizer.bf16=false")

    def plan(judge: str, *more: str) -> Result:
        profile.write_text("\n".join(["[two]", *lines, judge]) + "\n")
        return nemotron(*words, *more, cwd=tmp_path, bare=True)

    beside = plan("judge = { gpus_per_node = 8 }", "judge.server=vllm")
    assert beside.code == 0, beside.stderr
    assert "`vllm serve` on a machine besides `cluster`" in beside.stdout
    assert "#SBATCH hetjob" in beside.stdout
    assert "nemotron.judge.beside" in beside.stdout
    assert "the judge is asked over plain HTTP" in beside.stderr
    none = plan("", "judge.server=vllm")
    assert none.code == 3, none.stderr
    assert "the profile `two` names none" in none.stderr
    # A machine that the config has no use for is not asked for.
    gyms = plan("judge = { gpus_per_node = 8 }", "cluster.gpus_per_node=1")
    assert "hetjob" not in gyms.stdout
    assert "plain HTTP" not in gyms.stderr
