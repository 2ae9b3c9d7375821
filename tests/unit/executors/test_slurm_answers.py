"""What Slurm's commands say and do not say: clusters with and without accounts, a lost answer, limits, reasons to wait.

A real Slurm with accounts is asked in tests/integration/test_slurm_accounts.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nemotron.errors import ExecutorError, NotAvailableError
from nemotron.executors import follow
from nemotron.executors.base import JobState
from nemotron.executors.shells import TIMEOUT_S, Done
from nemotron.executors.slurm.executor import Slurm, _job_id, _state
from nemotron.executors.slurm.states import job_state
from nemotron.runs.folder import list_runs
from tests.in_process import nemotron

FORGOTTEN = Done(1, b"", "slurm_load_jobs error: Invalid job id specified\n")
NONE = Done(1, b"", "Slurm accounting storage is disabled\n")
DOWN = Done(1, b"", "sacct: error: Sending PersistInit msg\nsacct: error: Problem talking to the database: refused\n")
LOST = JobState("lost", "Slurm does not know the job any more")


@dataclass
class Says:
    """A machine whose commands say what they are told; one that is not told is not there."""

    answers: Mapping[str, Done]
    asked: list[Sequence[str]] = field(default_factory=list)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Done:
        self.asked.append(argv)
        if argv[0] not in self.answers:
            raise NotAvailableError(f"there is no command `{argv[0]}` here")
        return self.answers[argv[0]]


@pytest.mark.parametrize(
    ("sacct", "state"),
    [
        ({"sacct": NONE}, LOST),
        ({}, LOST),
        ({"sacct": Done(127, b"", "bash: line 1: sacct: command not found\n")}, LOST),
        ({"sacct": Done(0, b"", "")}, LOST),
        ({"sacct": Done(0, b"70|COMPLETED|0:0\n7|FAILED|3:0\n", "")}, JobState("failed", "", 3)),
        ({"sacct": Done(0, b"7|CANCELLED by 1000|0:0\n", "")}, JobState("cancelled", "CANCELLED", 0)),
        ({"sacct": Done(0, b"7|OUT_OF_MEMORY|0:125\n", "")}, JobState("out_of_memory", "OUT_OF_MEMORY", 253)),
    ],
    ids=["disabled", "not there", "not there over ssh", "does not know", "failed", "cancelled", "memory"],
)
def test_a_job_that_the_controller_forgot(sacct: dict[str, Done], state: JobState) -> None:
    assert _state(Says({"scontrol": FORGOTTEN, **sacct}), "7") == state


def test_accounts_that_cannot_be_asked_make_no_job_lost() -> None:
    """A run would be told to go on elsewhere while its job, which the database knows, may have ended well."""
    with pytest.raises(ExecutorError, match="the accounts cannot be asked: sacct: error: Problem talking to the data"):
        _state(Says({"scontrol": FORGOTTEN, "sacct": DOWN}), "7")


@pytest.mark.parametrize("sacct", [{}, {"sacct": NONE}, {"sacct": DOWN}], ids=["not there", "disabled", "down"])
def test_no_accounts_keep_no_job_from_being_sent(sacct: dict[str, Done]) -> None:
    assert Slurm()._by_name(Says({"squeue": Done(0, b"", ""), **sacct}), "nemotron-r-1") is None


def test_a_name_is_looked_for_in_more_than_the_accounts_of_today() -> None:
    shell = Says({"squeue": Done(0, b"", ""), "sacct": Done(0, b"12_0\n12_1\n", "")})
    assert Slurm()._by_name(shell, "nemotron-r-array") == "12"
    assert "--starttime=now-7days" in shell.asked[-1]


@pytest.mark.parametrize("said", ["Socket timed out on send/recv operation", "Unable to contact slurm controller"])
def test_a_job_that_was_taken_although_sbatch_failed(said: str) -> None:
    """A busy controller takes the job and answers too late: another one would be a second job of the run."""
    sbatch = Done(1, b"", f"sbatch: error: Batch job submission failed: {said}\n")
    taken = Says({"sbatch": sbatch, "squeue": Done(0, b"41\n", ""), "sacct": NONE})
    assert Slurm()._sent(taken, ["sbatch", "job.sh"], {}, "nemotron-r-1") == "41"
    refused = Says({"sbatch": sbatch, "squeue": Done(0, b"", ""), "sacct": NONE})
    with pytest.raises(ExecutorError, match=said):
        Slurm()._sent(refused, ["sbatch", "job.sh"], {}, "nemotron-r-1")


@pytest.mark.parametrize(
    ("limit", "hint"),
    [
        ("QOSMaxSubmitJobPerUserLimit", "wait until some of your jobs"),
        ("AssocGrpSubmitJobsLimit", "wait until some of your jobs"),
        ("QOSMaxCpuPerJobLimit", "ask for less"),
        ("QOSMaxWallDurationPerJobLimit", "ask for less"),
        ("AssocMaxNodePerJobLimit", "ask for less"),
    ],
)
def test_a_refusal_names_the_limit(limit: str, hint: str) -> None:
    """Of a limit of each job waiting helps nobody; which one it is, stood in a line that was left out."""
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    said = f"sbatch: error: {limit}\nsbatch: error: Batch job submission failed: {policy}\n"
    with pytest.raises(ExecutorError) as caught:
        _job_id(Done(1, b"", said))
    assert caught.value.message == f"Slurm refuses the job: {policy}: {limit}"
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("reason", "means"),
    [
        ("QOSMaxCpuPerJobLimit", "more than one job may have"),
        ("AssocMaxWallDurationPerJobLimit", "more than one job may have"),
        ("PartitionTimeLimit", "more time than the partition gives"),
        ("InvalidQOS", "no such thing"),
        ("JobHeldUser", "`scontrol release`"),
        ("launch_failed_requeued_held", "`scontrol release`"),
    ],
)
def test_a_job_that_will_not_start_says_so(reason: str, means: str) -> None:
    told = job_state("PENDING", reason).reason
    assert told.startswith(f"{reason}: it will not start as it is, because ")
    assert means in told


@pytest.mark.parametrize("reason", ["QOSMaxJobsPerUserLimit", "QOSGrpCpuLimit", "Priority", "Resources", "BeginTime"])
def test_a_job_whose_turn_comes_says_no_more_than_slurm(reason: str) -> None:
    assert job_state("PENDING", reason).reason == reason
    assert job_state("CANCELLED", "QOSMaxCpuPerJobLimit", "0:0").reason == "CANCELLED, QOSMaxCpuPerJobLimit"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A project on a machine that has these commands of Slurm and no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "mkdir", "mv", "rm", "sh", "tar", "test"):
        (folder / name).symlink_to(Path("/usr/bin") / name)
    monkeypatch.setenv("PATH", str(folder))
    (tmp_path / "env.toml").write_text(f'[lab]\nexecutor = "slurm"\nremote_job_dir = "{tmp_path}/far"\n')

    def make(**commands: str) -> None:
        for name, text in commands.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    return make


RUN = ("steps", "run", "rlhf", "-c", "tiny", "engine=embedded")


def test_a_cluster_without_sacct_takes_runs(tmp_path: Path, tools: Callable[..., None]) -> None:
    """Every submission looks for a job of its name, and ended where there was no command for that."""
    tools(sbatch="echo 41", squeue="exit 0")
    done = nemotron(*RUN, "-b", "lab", cwd=tmp_path)
    assert (done.code, "job 41" in done.stderr) == (0, True), done.stderr


def test_a_job_that_no_node_could_start_has_not_ended_well(
    tmp_path: Path, tools: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job whose node fails to start it Slurm 22.05 says COMPLETED and 0:0: so did `-r`, with nothing printed."""
    monkeypatch.setattr(follow, "LATE_S", 0.0)
    tools(sbatch="echo 41", squeue="exit 0", scontrol="echo JobId=41 JobState=COMPLETED Reason=None ExitCode=0:0")
    done = nemotron(*RUN, "-r", "lab", cwd=tmp_path)
    assert (done.code, "failed (Slurm says COMPLETED, and the run has not finished" in done.stderr) == (9, True)
    listed = json.loads(nemotron("runs", "list", "--json", cwd=tmp_path).stdout)
    assert [row["status"] for row in listed] == ["killed"]
    # Its last word arrives late where folders are shared.
    monkeypatch.setattr(follow, "LATE_S", 30.0)
    [run] = list_runs(tmp_path / "runs")
    late = threading.Timer(1.5, lambda: run.write_status(state="finished", exit_code=0))
    late.start()
    assert nemotron("runs", "logs", "-f", run.id, cwd=tmp_path).code == 0
    late.join()
