"""`-r`, `-b` and `runs` on a real Slurm: two nodes of one machine. How jobs end is in test_slurm_ends.py."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemotron.processes.notice import FILE as notice_file
from tests.integration.slurm.lab import Lab
from tests.integration.slurm.sshd import Sshd

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STEPS = ("grpo.max_num_steps=6", "checkpointing.save_period=2")
ENDLESS = (
    "grpo.max_num_steps=100000",
    "grpo.max_num_epochs=1000",
    "policy.optimizer.kwargs.lr=1e-12",  # one that learns is ended by the limits of the tiny config, sooner or later
    "checkpointing.save_period=2",
    "checkpointing.keep_top_k=1",
)
SECRET = "planted-secret-5d1f"
STRANGE = "a 'b' \"c\" $(touch pwned) `id`\n\tsecond line; ü 漢 \\ %s $HOME"


@dataclass
class Cluster:
    """The lab, and a project folder with profiles for it."""

    lab: Lab
    folder: Path

    def profile(self, name: str, *lines: str, shared: str = "shared") -> None:
        """Write a profile."""
        file = self.folder / "profiles" / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        base = ['executor = "slurm"', f'remote_job_dir = "{self.folder}/{shared}"', f'python = "{sys.executable}"']
        base += (
            ['env_vars.OMP_NUM_THREADS = "1"', 'partition = "batch"']
            if not any("partition" in x for x in lines)
            else ['env_vars.OMP_NUM_THREADS = "1"']
        )
        file.write_text("\n".join([f"[{name}]", *base, *lines]) + "\n")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "nemotron", *words]

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        return {**os.environ, **self.lab.environment, "OMP_NUM_THREADS": "1", **extra}

    def nemotron(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        argv, env = self.command(*words), self.environment(extra)
        return subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=400, check=False)

    def start(self, *words: str, **extra: str) -> subprocess.Popen[str]:
        """A command that goes on."""
        pipe, env = subprocess.PIPE, self.environment(extra)
        return subprocess.Popen(self.command(*words), cwd=self.folder, env=env, stdout=pipe, stderr=pipe, text=True)

    def tiny(self, flag: str, profile: str, *overrides: str, step: str = "rl/nemo_rl/rlvr") -> list[str]:
        """A short run; this step needs no judge, which is a process more."""
        words = ("engine=embedded", "eval.heldout.max_samples=16")
        return ["steps", "run", step, "-c", "tiny", *words, flag, profile, *overrides]

    def brief(self, flag: str, profile: str, made: str, shared: str = "shared") -> list[str]:
        """What takes a second, as nothing is trained, where only the way of a job matters; ``made`` is its folder."""
        folder = f"output_dir={self.folder}/{shared}/made/{made}"
        return ["steps", "run", "data_prep/rl_prep", "-c", "tiny", flag, profile, folder]

    def run_dir(self, run: str) -> Path:
        return (self.folder / "runs" / run).resolve()

    def handle(self, run: str, number: int = 1) -> dict[str, object]:
        return dict(json.loads((self.run_dir(run) / "attempts" / str(number) / "handle.json").read_text()))

    def newest(self) -> str:
        return max(os.listdir(self.folder / "runs"), default="")

    def state(self, run: str) -> str:
        rows = json.loads(self.nemotron("runs", "list", "--json").stdout)
        return str(next(row["status"] for row in rows if row["id"] == run))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    lab = Lab(folder / "lab")
    lab.start()
    (folder / "project" / "runs").mkdir(parents=True)
    try:
        yield Cluster(lab, folder / "project")
    finally:
        lab.stop()


@contextmanager
def login_node(cluster: Cluster) -> Iterator[Sshd]:
    """A login node that one reaches by ssh."""
    server = Sshd(cluster.folder / "sshd", cluster.lab.config)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def sshd(cluster: Cluster) -> Iterator[Sshd]:
    with login_node(cluster) as server:
        yield server


@pytest.fixture(scope="module")
def reference(cluster: Cluster) -> Path:
    """The run on this machine that a cluster's has to equal: weights, and what was measured."""
    done = cluster.nemotron(*cluster.tiny("--runs-dir", "local", *STEPS))
    assert done.returncode == 0, done.stderr
    return next((cluster.folder / "local").iterdir())


def until(what: Callable[[], object], limit_s: float = 120, every_s: float = 0.2) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(every_s)


def weights(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints" / "step_6" / "policy" / "weights"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.distcp"))}


def heldout(run: Path) -> tuple[object, object]:
    status = json.loads((run / "status.json").read_text())
    return status["heldout_before"], status["heldout_after"]


def steps_done(run: Path) -> int:
    """The last step of which there is a whole row; the first row is that of the held-out rows before any step."""
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text().rpartition("\n")[0].splitlines() if metrics.exists() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


def processes(words: str) -> list[int]:
    """Numbers of the processes whose command has these words."""
    found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


def held(run: Path, steps: int) -> list[int]:
    """Stop the worker of a job when it has done so many steps: what comes next meets it in mid-run, however slow that
    is. Slurm itself wakes what it ends; all that were stopped are returned."""
    # They are looked for beforehand: a run does a step in the time that it takes to find them.
    until(lambda: steps_done(run) >= 1, every_s=0.02)
    workers = processes(f"nemotron.engines.worker .*{run.name}")
    until(lambda: steps_done(run) >= steps, every_s=0.005)
    assert workers, "the run has ended already"
    for number in workers:
        os.kill(number, signal.SIGSTOP)
    return workers


def test_attached_is_the_local_run(cluster: Cluster, reference: Path) -> None:
    cluster.profile("slurm_rl_nemo_rl_rlhf")
    done = cluster.nemotron(*cluster.tiny("-r", "slurm_rl_nemo_rl_rlhf", *STEPS))
    assert done.returncode == 0, done.stderr
    assert "step 6/6" in done.stdout  # the job's own log
    run = cluster.run_dir(cluster.newest())
    assert heldout(run) == heldout(reference)
    assert weights(run) == weights(reference) != {}
    assert cluster.state(run.name) == "finished"


def test_detached_cancelled_resumed(cluster: Cluster, reference: Path) -> None:
    cluster.profile("batch", "time = '01:00:00'")
    submitted = cluster.nemotron(*cluster.tiny("-b", "batch", *STEPS))
    run = submitted.stdout.strip()
    assert submitted.returncode == 0
    assert re.fullmatch(r"\d{8}-\d{6}-rlvr-tiny-[0-9a-f]{4}", run), "stdout has the run's id and nothing else"
    held(cluster.run_dir(run), 4)
    assert cluster.state(run) == "running"
    cluster.lab.run("scancel", str(cluster.handle(run)["job_id"]))
    cluster.lab.wait_until_empty()
    assert cluster.state(run) in ("cancelled", "interrupted")
    resumed = cluster.nemotron("runs", "resume", run, "--attach")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(cluster.run_dir(run)) == weights(reference)
    logs = cluster.nemotron("runs", "logs", run)
    assert "step 6/6" in logs.stdout
    assert cluster.nemotron("runs", "resume", run).returncode == 0, "finished already"


def test_notice_of_the_end_saves_and_queues_again(cluster: Cluster, reference: Path) -> None:
    cluster.profile("batch", "time = '01:00:00'")
    run = cluster.nemotron(*cluster.tiny("-b", "batch", *STEPS)).stdout.strip()
    path, job = cluster.run_dir(run), str(cluster.handle(run)["job_id"])
    workers = held(path, 1)
    cluster.lab.run("scancel", "--signal=USR1", "--batch", job)
    until((path / "attempts" / "1" / notice_file).exists)
    for number in workers:
        os.kill(number, signal.SIGCONT)
    follower = cluster.nemotron("runs", "logs", "-f", run)
    assert follower.returncode == 0, follower.stderr
    assert "the scheduler says that the time of the job ends" in follower.stdout
    assert "Restarts=1" in cluster.lab.run("scontrol", "show", "job", job)
    assert weights(path) == weights(reference)


def test_runs_cancel_is_final(cluster: Cluster) -> None:
    cluster.profile("batch")
    run = cluster.nemotron(*cluster.tiny("-b", "batch", *ENDLESS)).stdout.strip()
    until(lambda: steps_done(cluster.run_dir(run)) >= 1)
    assert cluster.nemotron("runs", "cancel", run).returncode == 0
    cluster.lab.wait_until_empty()
    assert cluster.state(run) in ("cancelled", "interrupted")
    again = cluster.nemotron("runs", "cancel", run)
    assert (again.returncode, "nothing to cancel" in again.stderr) == (4, True)
    until(lambda: not processes(f"{run}/"))


@pytest.mark.parametrize(
    ("partition", "said"), [("nosuch", "invalid partition"), ("closed", "required partition not available")]
)
def test_refused_by_slurm(cluster: Cluster, partition: str, said: str) -> None:
    cluster.profile("refused", f'partition = "{partition}"')
    done = cluster.nemotron(*cluster.tiny("-r", "refused"))
    assert done.returncode == 11
    assert said in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert cluster.state(cluster.newest()) == "failed"


@contextmanager
def narrow(folder: Path, *lines: str) -> Iterator[Cluster]:
    """A second Slurm, with lines of its own in its configuration."""
    lab = Lab(folder / "lab", nodes=1, more=lines)
    lab.start()
    (folder / "project" / "runs").mkdir(parents=True)
    found = Cluster(lab, folder / "project")
    found.profile("narrow")
    try:
        yield found
    finally:
        lab.stop()


@pytest.fixture(scope="module", autouse=True)
def refused_by_a_full_queue(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Cluster, list[subprocess.Popen[str]]]]:
    """Submissions on the login node and over ssh. sbatch asks a full queue again for two minutes: the other tests of
    this file run meanwhile."""
    with narrow(tmp_path_factory.mktemp("full"), "MaxJobCount=3") as slurm, login_node(slurm) as node:
        slurm.profile("far", *node.profile.splitlines(), shared="far")
        for _ in range(2):
            slurm.lab.run("sbatch", "--hold", "-o", "/dev/null", "--wrap", "true")
        commands = [slurm.start(*slurm.tiny("-b", profile)) for profile in ("narrow", "far")]
        yield slurm, commands
        for command in commands:
            command.kill()
            command.wait()


def test_a_sweep_that_is_larger_than_the_clusters_arrays(tmp_path: Path) -> None:
    with narrow(tmp_path, "MaxArraySize=3") as slurm:
        words = [*slurm.tiny("-b", "narrow"), "--sweep", "grpo.seed=1,2,3,4"]
        refused = slurm.nemotron(*words)
        assert refused.returncode == 11, refused.stderr
        assert refused.stderr.count("Slurm refuses the job: Invalid job array specification") == 1, refused.stderr
        assert "`array = false` in the profile" in refused.stderr
        assert slurm.lab.run("squeue", "-h", "-o", "%A") == ""


def test_waiting_is_said_with_its_reason(cluster: Cluster) -> None:
    both = ("nodes = 2", "exclusive = true")
    cluster.profile("large", *both, "startup_commands = ['sleep 600']")
    cluster.profile("big", *both)
    first = cluster.nemotron(*cluster.brief("-b", "large", "first")).stdout.strip()
    job = str(cluster.handle(first)["job_id"])
    until(lambda: cluster.lab.run("squeue", "-h", "-j", job, "-o", "%t") == "R")
    second = cluster.start(*cluster.brief("-r", "big", "second"))
    assert second.stderr is not None
    lines: list[str] = []
    until(lambda: lines.append(second.stderr.readline()) or "queued (" in lines[-1])  # type: ignore[union-attr, func-returns-value]
    assert re.search(r"queued \((Resources|Priority)\)", lines[-1])
    assert "queued" in cluster.nemotron("runs", "list").stdout
    cluster.nemotron("runs", "cancel", first)
    assert second.wait(200) == 0


@contextmanager
def watched(secret: str) -> Iterator[None]:
    """Nobody's command line has the secret while the block runs, however short the process lives."""
    found, over = set[str](), threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):  # it has ended
                    if secret.encode() in (words := entry.read_bytes()):
                        found.add(words.decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert found == set()


def environment_arrives(cluster: Cluster, *lines: str, shared: str = "shared") -> None:
    """Values as they are, by their names; secrets where they are used and nowhere else."""
    seen = cluster.folder.parent / "seen" / shared
    seen.parent.mkdir(exist_ok=True)
    cluster.profile(
        "vars",
        f"env_vars.STRANGE = {json.dumps(STRANGE, ensure_ascii=False)}",
        'env_vars.lower_case = "as it is"',
        'env_vars.EMPTY = ""',
        'env_vars.RENAMED = "${oc.env:PLANTED}"',
        'pass_env = ["PLANTED", "NOT_THERE"]',
        f"startup_commands = ['env -0 > {seen}']",
        *lines,
        shared=shared,
    )
    words = cluster.brief("-r", "vars", "vars", shared)
    with watched(SECRET):
        dry = cluster.nemotron(*words, "--dry-run", PLANTED=SECRET)
        assert dry.returncode == 0, dry.stderr
        done = cluster.nemotron(*words, PLANTED=SECRET, UNRELATED="x")
    assert done.returncode == 0, done.stderr
    variables = dict(entry.partition("=")[::2] for entry in seen.read_text().split("\0"))
    assert {name: variables[name] for name in ("STRANGE", "lower_case", "EMPTY")} == {
        "STRANGE": STRANGE,
        "lower_case": "as it is",
        "EMPTY": "",
    }
    assert variables["PLANTED"] == variables["RENAMED"] == SECRET
    assert not {"UNRELATED", "NOT_THERE"} & set(variables)
    assert not list(cluster.folder.rglob("pwned"))
    files = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in dry.stdout + dry.stderr + done.stdout + done.stderr


def test_environment_arrives_and_secrets_stay_nowhere(cluster: Cluster) -> None:
    environment_arrives(cluster)


def test_two_at_once_and_the_same_twice(cluster: Cluster) -> None:
    from nemotron.executors.launch import resume
    from nemotron.executors.slurm.executor import Slurm
    from nemotron.runs.attempts import attempts_of
    from nemotron.runs.folder import RunFolder

    cluster.profile("batch")
    both = [cluster.start(*cluster.brief("-b", "batch", made)) for made in ("one", "other")]
    runs = {command.communicate(timeout=200)[0].strip() for command in both}
    assert len(runs) == 2
    jobs = {str(cluster.handle(run)["job_id"]) for run in runs}
    assert len(jobs) == 2
    cluster.lab.wait_until_empty(120)
    assert {cluster.state(run) for run in runs} == {"finished"}
    # The connection broke after sbatch: nobody knows the job's number, its name tells.
    run = RunFolder.open(cluster.run_dir(runs.pop()))
    handle = attempts_of(run.path)[-1].handle()
    forgotten = handle.model_copy(update={"job_id": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.lab.config))
        from nemotron.executors.base import How, Target
        from nemotron.executors.launch import _kept_profile

        target = Target(run.path, str(run.path))
        submission = Slurm().plan(_kept_profile(run), run.job(), target, 1, How())
        again = Slurm().submit(run, submission, {}, forgotten)
        assert (again.model_extra or {})["job_id"] == (handle.model_extra or {})["job_id"]
        assert resume(run, max_steps=None, command=()) is None, "it is finished"


def sweep_of_two(cluster: Cluster, profile: str, *words: str) -> list[str]:
    """The runs of a detached sweep, in the order of its values."""
    done = cluster.nemotron(*cluster.tiny("-b", profile, *words), "--sweep", "grpo.seed=11,12")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_sweep_is_one_array(cluster: Cluster) -> None:
    """Each task is a run like any other: its own state, log, end, and way on from there."""
    cluster.profile("arrays")
    first, second = sweep_of_two(cluster, "arrays", *ENDLESS)
    jobs = [str(cluster.handle(run)["job_id"]) for run in (first, second)]
    array = jobs[0].partition("_")[0]
    assert jobs == [f"{array}_0", f"{array}_1"]
    until(lambda: steps_done(cluster.run_dir(first)) > 2 and steps_done(cluster.run_dir(second)) > 2)
    name = str(cluster.handle(first)["job_name"])
    assert cluster.lab.run("squeue", "-h", "-n", name, "-o", "%F").split() == [array] * 2
    assert [cluster.state(run) for run in (first, second)] == ["running", "running"]
    assert "step 1/" in cluster.nemotron("runs", "logs", first).stdout
    # One is cancelled, and the other one goes on; what Slurm itself says of a task stands in its own log.
    assert cluster.nemotron("runs", "cancel", first).returncode == 0
    until(lambda: cluster.state(first) in ("interrupted", "cancelled"))
    assert cluster.state(second) == "running"
    cluster.lab.run("scancel", jobs[1])
    followed = cluster.nemotron("runs", "logs", "-f", second)
    assert followed.returncode == 130, followed.stderr
    # Each goes on alone, from its last checkpoint.
    done = steps_done(cluster.run_dir(first))
    resumed = cluster.nemotron("runs", "resume", first)
    assert resumed.returncode == 0, resumed.stderr
    assert "_" not in str(cluster.handle(first, 2)["job_id"])
    until(lambda: steps_done(cluster.run_dir(first)) > done)
    assert cluster.nemotron("runs", "cancel", first).returncode == 0
    cluster.lab.wait_until_empty()


def test_an_array_to_its_end_attached(cluster: Cluster) -> None:
    cluster.profile("arrays")
    words = [*cluster.tiny("-r", "arrays", *STEPS), "--sweep", "limits.max_kl=null,1e-9"]
    done = cluster.nemotron(*words)
    # The exit code is that of the task that failed.
    assert (done.returncode, "1 of 2 runs finished" in done.stderr) == (9, True), done.stderr
    assert len(re.findall(r"submitted to `arrays`, job (\d+)_[01]\n", done.stderr)) == 2


def test_ctrl_c_detaches(cluster: Cluster) -> None:
    cluster.profile("batch")
    before = cluster.newest()
    command = cluster.start(*cluster.tiny("-r", "batch", *ENDLESS))
    until(lambda: cluster.newest() != before and steps_done(cluster.run_dir(cluster.newest())) >= 1)
    run = cluster.newest()
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=120)
    assert command.returncode == 130
    assert "the job goes on" in err
    assert cluster.state(run) == "running"
    cluster.nemotron("runs", "cancel", run)
    cluster.lab.wait_until_empty()


def test_a_full_queue_is_one_line(refused_by_a_full_queue: tuple[Cluster, list[subprocess.Popen[str]]]) -> None:
    """It was asked again until there was no patience left, and said once."""
    slurm, commands = refused_by_a_full_queue
    for full in commands:
        _, err = full.communicate(timeout=300)
        assert full.returncode == 11, err
        assert len(re.findall(r"^error: Slurm refuses the job: ", err, re.MULTILINE)) == 1, err
        assert "the cluster's queue is full: submit again when jobs have ended" in err
        assert "Traceback" not in err
    assert [slurm.state(run) for run in os.listdir(slurm.folder / "runs")] == ["failed", "failed"]
    # And there is no job of the run that would start all the same.
    assert len(slurm.lab.run("squeue", "-h", "-o", "%A").split()) == 2
