"""A Slurm with accounts: limits of a QOS, and jobs of which the accounts alone know how they ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.executors.base import JobState
from nemotron.executors.shells import Here
from nemotron.executors.slurm.executor import Slurm
from nemotron.runs.attempts import Handle, attempts_of
from tests.integration.slurm.accounts import Accounts
from tests.integration.slurm.lab import Lab
from tests.integration.test_slurm import STEPS, Cluster, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("accounts")
    lab = Lab(folder / "lab", nodes=1, accounted=True)
    (folder / "project" / "runs").mkdir(parents=True)
    try:
        lab.start()
        yield Cluster(lab, folder / "project")
    finally:
        lab.stop()


@pytest.fixture
def accounts(cluster: Cluster) -> Accounts:
    assert cluster.lab.accounts is not None
    return cluster.lab.accounts


def other(cluster: Cluster, *words: str, what: str = "sleep 300") -> str:
    """A job of the same user, besides."""
    return cluster.lab.run("sbatch", "--parsable", "-o", "/dev/null", *words, "--wrap", what)


@pytest.mark.parametrize(
    ("qos", "limit", "hint"),
    [
        ("one-submitted", "QOSMaxSubmitJobPerUserLimit", "wait until some of your jobs have ended"),
        ("small-jobs-or-none", "QOSMaxCpuPerJobLimit", "ask for less"),
    ],
)
def test_refused_by_a_limit_of_a_qos(cluster: Cluster, qos: str, limit: str, hint: str) -> None:
    first = other(cluster, "--qos", qos)
    cluster.profile("limited", f"qos = '{qos}'", "cpus_per_task = 4")
    refused = cluster.nemotron(*cluster.tiny("-b", "limited"))
    cluster.lab.run("scancel", first)
    assert (refused.returncode, refused.stdout) == (11, "")
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error:")]
    said = "Slurm refuses the job: Job violates accounting/QOS policy "
    assert [re.sub(r"\(.*\)", "(…)", line) for line in errors] == [f"error: {said}(…): {limit}"], refused.stderr
    assert hint in refused.stderr
    assert "Traceback" not in refused.stderr
    assert cluster.state(cluster.newest()) == "failed"
    cluster.lab.wait_until_empty()


def test_a_qos_and_an_account_that_are_not_there(cluster: Cluster) -> None:
    for line, said in (("qos = 'nosuch'", "Invalid qos"), ("account = 'nosuch'", "Invalid account")):
        cluster.profile("nosuch", line)
        refused = cluster.nemotron(*cluster.tiny("-b", "nosuch"))
        assert (refused.returncode, f"Slurm refuses the job: {said}" in refused.stderr) == (11, True), refused.stderr
        assert "sacctmgr show assoc" in refused.stderr


@pytest.mark.parametrize(
    ("qos", "reason"),
    [
        ("one-running", "QOSMaxJobsPerUserLimit"),
        (
            "small-jobs",
            "QOSMaxCpuPerJobLimit: it will not start as it is, because it asks for more than one job may have",
        ),
    ],
)
def test_waiting_for_a_limit_is_said_and_can_be_cancelled(cluster: Cluster, qos: str, reason: str) -> None:
    first = other(cluster, "--qos", qos)
    cluster.profile("limited", f"qos = '{qos}'", "cpus_per_task = 2")
    before = cluster.newest()
    waiting = cluster.start(*cluster.tiny("-r", "limited", *STEPS))
    assert waiting.stderr is not None
    lines: list[str] = []
    until(lambda: lines.append(waiting.stderr.readline()) or f"queued ({reason}" in lines[-1])  # type: ignore[union-attr, func-returns-value]
    run = cluster.newest()
    assert run != before
    assert cluster.state(run) == "queued"
    assert cluster.nemotron("runs", "cancel", run).returncode == 0
    _, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, "was cancelled (CANCELLED" in err) == (130, True), err
    assert cluster.state(run) == "cancelled"
    assert cluster.lab.run("squeue", "-h", "-o", "%A") == first, "the other job goes on"
    cluster.lab.run("scancel", first)
    cluster.lab.wait_until_empty()


def ended(rows: str) -> list[str]:
    return [row for row in rows.splitlines() if not re.search(r"PENDING|RUNNING", row)]


@pytest.fixture
def asked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], JobState]:
    """What is said of a job."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.lab.config))
    fixed = {"executor": "slurm", "started_at": "", "host": "here"}
    return lambda job: Slurm().state(Handle.model_validate({**fixed, "job_id": job}))


def test_the_accounts_know_what_the_controller_forgot(
    cluster: Cluster, accounts: Accounts, asked: Callable[[str], JobState]
) -> None:
    # Killed before the worker could say a word.
    cluster.profile("dies", "startup_commands = ['kill -KILL $$']")
    died = cluster.nemotron(*cluster.tiny("-b", "dies")).stdout.strip()
    jobs: dict[str, Any] = {
        other(cluster, what="true"): ("finished", 0),
        str(cluster.handle(died)["job_id"]): ("failed", 137),
        other(cluster, what="exit 7"): ("failed", 7),
    }
    held = other(cluster, "--hold")
    cluster.lab.run("scancel", held)
    array = other(cluster, "--array=0-1", what="exit $((SLURM_ARRAY_TASK_ID * 3))")
    jobs |= {held: ("cancelled", 0), f"{array}_0": ("finished", 0), f"{array}_1": ("failed", 3)}
    cluster.lab.wait_until_empty()

    def said() -> dict[str, Any]:
        states = {job: asked(job) for job in jobs}
        return {job: (state.state, state.exit_code) for job, state in states.items()}

    assert said() == jobs, "of the controller"
    # It tells the accounts in its own time.
    rows = ["sacct", "-X", "-n", "-P", "--format=JobID,State", f"--jobs={','.join(jobs)}"]
    until(lambda: {row.split("|")[0] for row in ended(cluster.lab.run(*rows))} == set(jobs))
    cluster.lab.forget_jobs()
    assert cluster.lab.run("squeue", "-h", "-t", "all") == ""
    assert said() == jobs, "of the accounts"
    # Sent again, it is the same job: by its name.
    handle = attempts_of(cluster.run_dir(died))[-1].handle()
    extra = handle.model_extra or {}
    assert Slurm()._by_name(Here(), str(extra["job_name"])) == extra["job_id"]
    assert cluster.state(died) == "killed"
    followed = cluster.nemotron("runs", "logs", "-f", died)
    assert (followed.returncode, "ended with exit code 137" in followed.stderr) == (137, True), followed.stderr

    # Accounts that cannot be asked say nothing: the run is not taken for lost, and new jobs are taken.
    accounts.pause()
    assert asked(held).state == "unknown"
    assert "the accounts cannot be asked: " in asked(held).reason
    assert cluster.state(died) == "unknown"
    meanwhile = cluster.nemotron(*cluster.tiny("-b", "dies"))
    assert meanwhile.returncode == 0, meanwhile.stderr
    accounts.go_on()
    assert asked(held).state == "cancelled"


def test_accounts_that_are_there_and_know_nothing(cluster: Cluster, asked: Callable[[str], JobState]) -> None:
    assert asked("999999") == JobState("lost", "Slurm does not know the job any more")


def test_every_limit_of_the_lab_is_hit_here() -> None:
    from tests.integration.slurm.accounts import QOS

    text = Path(__file__).read_text()
    assert [name for name in QOS if f'"{name}"' not in text] == []
