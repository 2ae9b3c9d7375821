"""The same Slurm from a machine that sees nothing of it: all goes through the system's ssh to a login node."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.slurm.sshd import Sshd
from tests.integration.test_slurm import (
    STEPS,
    Cluster,
    cluster,
    environment_arrives,
    held,
    heldout,
    reference,
    sshd,
    steps_done,
    sweep_of_two,
    until,
    weights,
)

__all__ = ["cluster", "reference", "sshd"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


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


@contextmanager
def breaking(cluster: Cluster, name: str, *, for_good: bool) -> Iterator[Sshd]:
    """A login node whose connection breaks when sbatch has taken a job: nobody hears the answer."""
    folder = cluster.folder / name
    folder.mkdir()
    node = Sshd(folder / "sshd", cluster.lab.config, path=f"{folder}:{Sshd.path}")
    node.start()
    pid = int((node.folder / "pid").read_text())
    wrapper = folder / "sbatch"
    # Looked for before their parent ends: without it nobody could tell whose they are.
    ends = [
        f"connections=$(pgrep -P {pid})",
        *([f"kill {pid}; sleep 0.3"] if for_good else []),
        "kill -KILL $connections",
    ]
    wrapper.write_text("\n".join(["#!/bin/bash", f'/usr/bin/sbatch "$@" > {folder}/took', *ends, ""]))
    wrapper.chmod(0o755)
    try:
        yield node
    finally:
        node.stop()


def test_connection_breaks_while_submitting(cluster: Cluster) -> None:
    """The next try finds the job by its name."""
    with breaking(cluster, "breaks", for_good=False) as node:
        cluster.profile("breaks", *node.profile.splitlines(), shared="far")
        done = cluster.nemotron(*cluster.brief("-b", "breaks", "breaks", "far"))
    assert done.returncode == 0, done.stderr
    job = (cluster.folder / "breaks" / "took").read_text().strip()
    assert cluster.handle(done.stdout.strip())["job_id"] == job
    name = cluster.lab.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%j")
    assert cluster.lab.run("squeue", "-h", "-t", "all", "--name", name, "-o", "%A") == job, "one job of that name"
    cluster.lab.wait_until_empty(120)


def test_a_job_of_which_nobody_heard_is_found_later(cluster: Cluster) -> None:
    """The connection does not come back in time: the submission has failed, and its job goes on all the same."""
    with breaking(cluster, "gone", for_good=True) as node:
        # The job does nothing before all that is said of it while it goes on.
        gate = cluster.folder / "gone" / "gate"
        waits = f"startup_commands = ['until [ -e {gate} ]; do sleep 0.1; done']"
        cluster.profile("gone", *node.profile.splitlines(), waits, shared="far")
        failed = cluster.nemotron(*cluster.tiny("-b", "gone", *STEPS))
        assert (failed.returncode, failed.stdout) == (11, ""), failed.stderr
        job, run = (cluster.folder / "gone" / "took").read_text().strip(), cluster.newest()
        assert cluster.handle(run).get("job_id") is None
        node.listen()
        again = cluster.nemotron("runs", "resume", run)
        assert (again.returncode, "goes on already" in again.stderr) == (2, True), again.stderr
        gate.touch()
        followed = cluster.nemotron("runs", "logs", "-f", run)
        assert (followed.returncode, "step 6/6" in followed.stdout) == (0, True), followed.stderr
        assert cluster.state(run) == "finished"
        assert "nothing to cancel" in cluster.nemotron("runs", "cancel", run).stderr
    known = map(int, cluster.lab.run("squeue", "-h", "-t", "all", "-o", "%A").split())
    assert max(known) == int(job), "no job after it"


def test_a_submission_that_never_got_there_is_taken_up(cluster: Cluster, sshd: Sshd, reference: Path) -> None:
    cluster.profile("far", *sshd.profile.splitlines(), shared="far")
    sshd.stop()
    failed = cluster.nemotron(*cluster.tiny("-b", "far", *STEPS))
    assert (failed.returncode, "ssh to `127.0.0.1` failed" in failed.stderr) == (11, True), failed.stderr
    run = cluster.newest()
    assert f"then `nemotron runs resume {run}` sends it again" in failed.stderr
    for words in (("runs", "list"), ("runs", "show", run)):
        assert cluster.nemotron(*words).returncode == 0
    sshd.listen()
    resumed = cluster.nemotron("runs", "resume", run, "--attach")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(cluster.folder / "far" / "runs" / run) == weights(reference)
    assert cluster.state(run) == "finished"


def test_detached_cancelled_resumed(cluster: Cluster, sshd: Sshd, reference: Path) -> None:
    cluster.profile("far", *sshd.profile.splitlines(), shared="far")
    run = cluster.nemotron(*cluster.tiny("-b", "far", *STEPS)).stdout.strip()
    there = cluster.folder / "far" / "runs" / run
    held(there, 4)
    assert cluster.state(run) in ("running", "starting")
    assert cluster.nemotron("runs", "cancel", run).returncode == 0
    cluster.lab.wait_until_empty()
    shown = json.loads(cluster.nemotron("runs", "show", run, "--json").stdout)
    assert shown["status"] in ("cancelled", "interrupted")
    assert 4 <= shown["steps"] < 6
    resumed = cluster.nemotron("runs", "resume", run, "--attach")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(there) == weights(reference)
    assert (there / "attempts" / "2" / "logs" / "slurm.log").is_file()


def test_environment_arrives_and_secrets_stay_nowhere(cluster: Cluster, sshd: Sshd) -> None:
    environment_arrives(cluster, *sshd.profile.splitlines(), shared="far")


def test_what_slurm_refuses_and_the_last_words_of_a_job(cluster: Cluster, sshd: Sshd) -> None:
    cluster.profile("far", *sshd.profile.splitlines(), "partition = 'nosuch'", shared="far")
    refused = cluster.nemotron(*cluster.tiny("-r", "far"))
    assert (refused.returncode, "refuses the job: Invalid partition" in refused.stderr) == (11, True), refused.stderr
    lines = ("requeue = false", "startup_commands = ['echo the last words; exit 7']")
    cluster.profile("far", *sshd.profile.splitlines(), *lines, shared="far")
    ended = cluster.nemotron(*cluster.tiny("-r", "far"))
    assert (ended.returncode, "the last words" in ended.stdout) == (7, True), ended.stderr
    assert len(re.findall(r"^error: ", ended.stderr, re.MULTILINE)) == 1


def test_a_node_that_is_not_known_yet_is_not_trusted(cluster: Cluster, sshd: Sshd) -> None:
    """ssh would ask; it never does here, and the message says what to do."""
    lines = [line.replace("accept-new", "yes").replace("/known", "/unknown") for line in sshd.profile.splitlines()]
    cluster.profile("far", *lines, shared="far")
    done = cluster.nemotron("profiles", "check", "far")
    assert (done.returncode, "Host key verification failed" in done.stderr) == (11, True), done.stderr
    assert "try `ssh 127.0.0.1 true` in a terminal" in done.stderr


def test_no_such_host(cluster: Cluster) -> None:
    cluster.profile("nowhere", 'tunnel = "ssh"', 'host = "no-such-host.invalid"')
    done = cluster.nemotron(*cluster.tiny("-b", "nowhere"))
    assert done.returncode == 11
    assert "no-such-host.invalid" in done.stderr
    assert "Traceback" not in done.stderr
