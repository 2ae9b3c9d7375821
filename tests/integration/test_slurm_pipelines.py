"""A pipeline on a real Slurm: all nodes submitted at once, each waiting for those that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.pipelines.state import started
from tests.integration.test_slurm import Cluster, cluster, until
from tests.steps.test_pipelines import NODES, SHORT, results

__all__ = ["cluster"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def project(cluster: Cluster) -> Cluster:
    cluster.profile("batch", "cpus_per_task = 1", "mem = '2000M'")
    (cluster.folder / "short.yaml").write_text(SHORT)
    return cluster


def rows(cluster: Cluster) -> dict[str, dict[str, Any]]:
    shown = cluster.nemotron("pipelines", "status", "last", "--json")
    assert shown.returncode == 0, shown.stderr
    return {row["name"]: row for row in json.loads(shown.stdout)["nodes"]}


def states(cluster: Cluster) -> dict[str, str]:
    return {name: row["state"] for name, row in rows(cluster).items()}


def over(cluster: Cluster) -> bool:
    return not cluster.lab.run("squeue", "--noheader", "--format=%A").strip()


def test_the_scheduler_keeps_the_order_and_the_bits_are_those_of_this_machine(project: Cluster, tmp_path: Path) -> None:
    submitted = project.nemotron("pipelines", "run", "short.yaml", "-b", "batch")
    assert submitted.returncode == 0, submitted.stderr
    assert "5 jobs submitted" in submitted.stderr
    jobs = {name: str(project.handle(row["run"])["job_id"]) for name, row in rows(project).items()}
    waiting = project.lab.run("scontrol", "show", "job", jobs["hf"])
    assert f"Dependency=afterok:{jobs['dpo']}" in waiting
    until(lambda: over(project), 600)
    assert states(project) == dict.fromkeys(NODES, "finished")
    here = project.nemotron("pipelines", "run", "short.yaml", "--runs-dir", str(tmp_path / "runs"))
    assert here.returncode == 0, here.stderr
    there = started(project.folder / "runs")[-1]
    assert results(there) == results(started(tmp_path / "runs")[-1])

    again = project.nemotron("pipelines", "run", "short.yaml", "-b", "batch")
    assert again.returncode == 0, again.stderr
    assert states(project) == dict.fromkeys(NODES, "reused")


def test_a_gate_that_closes_leaves_what_is_behind_it_cancelled_with_the_reason(project: Cluster) -> None:
    words = ("audit.limits.min_agreement=1.0", "rm.rm.seed=5", "dpo.dpo.seed=7")
    assert project.nemotron("pipelines", "run", "short.yaml", "-b", "batch", *words).returncode == 0
    until(lambda: over(project), 600)
    found = rows(project)
    assert found["audit"]["state"] == "stopped"
    assert found["audit"]["exit_code"] == 9
    for name in ("dpo", "hf"):
        assert found[name]["state"] == "cancelled", found
    assert found["dpo"]["reason"].startswith("`audit` is stopped: ")
    assert "agreement" in found["dpo"]["reason"]
    assert not (project.run_dir(found["dpo"]["run"]) / "metrics.jsonl").exists()
    shown = project.nemotron("pipelines", "status", "last")
    assert "stopped" in shown.stdout.splitlines()[0]


def test_cancelled_jobs_go_on_where_they_were(project: Cluster) -> None:
    assert project.nemotron("pipelines", "run", "short.yaml", "-b", "batch", "rm.rm.seed=9").returncode == 0
    assert project.nemotron("pipelines", "cancel").returncode == 0
    until(lambda: over(project), 120)
    again = project.nemotron("pipelines", "resume", "last")
    assert again.returncode == 0, again.stderr
    until(lambda: over(project), 600)
    assert all(state in ("finished", "reused") for state in states(project).values()), rows(project)
