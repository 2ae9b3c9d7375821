"""Thread counts: affinity, cgroup quota, the judge's share, and no torch before it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nemotron.processes.cores import VARIABLE
from nemotron.rl import threads


@pytest.mark.parametrize(
    ("cores", "helper", "policy"), [(1, 1, 1), (2, 1, 1), (2, 0, 2), (16, 1, 15), (8, 2, 6), (16, 0, 16)]
)
def test_a_helper_takes_as_many_cores_as_it_has_threads(cores: int, helper: int, policy: int) -> None:
    assert threads.plan_threads(helper=helper, cores=cores, environ={}) == threads.ThreadPlan(cores, policy, helper)


def test_a_critic_on_the_same_machine_has_a_quarter() -> None:
    assert [threads.critic_threads(cores) for cores in (1, 2, 8, 16)] == [1, 1, 2, 4]


@pytest.mark.parametrize(("said", "policy"), [("5", 5), ("1", 1), ("", 3), ("0", 3), ("2,1", 3), ("many", 3)])
def test_the_user_decides_by_the_variable_that_torch_reads(said: str, policy: int) -> None:
    assert threads.plan_threads(helper=1, cores=4, environ={"OMP_NUM_THREADS": said}).policy == policy


def test_environment_keeps_what_the_user_set() -> None:
    environ = {"OMP_NUM_THREADS": "7", "PATH": "x"}
    threads.set_environment(2, environ)
    assert environ["OMP_NUM_THREADS"] == "7"
    assert environ["MKL_NUM_THREADS"] == "2"
    assert environ["GOMP_SPINCOUNT"] == "3000"


def test_importing_and_planning_load_no_torch() -> None:
    code = (
        "import sys; from nemotron.rl import threads; threads.plan_threads(helper=1);"
        "threads.set_environment(1); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_apply() -> None:
    before = torch.get_num_threads()
    try:
        threads.apply_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "policy", "load", "said"),
    [(2, 2, 1.5, True), (2, 2, 0.0, False), (2, 1, 9.0, False), (16, 12, 3.0, False), (16, 12, 8.0, True)],
)
def test_threads_that_meet_on_busy_cores_are_said(cores: int, policy: int, load: float, said: bool) -> None:
    text = threads.crowded(threads.ThreadPlan(cores=cores, policy=policy, helper=0), load)
    assert (text is not None) == said
    assert text is None or ("OMP_NUM_THREADS=1" in text and f"of {cores} cores busy" in text)


def test_a_process_with_a_share_does_not_complain_of_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (4.0, 4.0, 4.0))
    plan = threads.ThreadPlan(cores=2, policy=2, helper=0)
    assert threads.crowded(plan)
    monkeypatch.setenv(VARIABLE, "2")
    assert threads.crowded(plan) is None
