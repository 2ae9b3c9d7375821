"""How jobs of a real Slurm end, on the login node and over ssh at the same time: both wait for the same clocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.slurm.sshd import Sshd
from tests.integration.test_slurm import ENDLESS, Cluster, cluster, held, heldout, processes, sshd, steps_done, until

__all__ = ["cluster", "sshd"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PPO = ("steps", "run", "rl/nemo_rl/ppo", "-c", "tiny", "ppo.max_num_steps=3", "checkpointing.save_period=1")
TINY = ("steps", "run", "rl/nemo_rl/rlvr", "-c", "tiny", "engine=embedded")


class End(NamedTuple):
    """Of an attached command."""

    code: int
    out: str
    err: str


@dataclass
class Side:
    """One of the two ways to the cluster, with run folders of its own."""

    cluster: Cluster
    name: str
    tunnel: tuple[str, ...]
    command: subprocess.Popen[str] | None = None
    before: frozenset[str] = frozenset()

    @property
    def runs(self) -> Path:
        return self.cluster.folder / f"runs-{self.name}"

    def start(self, words: Sequence[str], *lines: str) -> None:
        """An attached run through a profile with these lines."""
        self.cluster.profile(self.name, *self.tunnel, *lines, shared=self.name)
        self.before = frozenset(os.listdir(self.runs)) if self.runs.exists() else frozenset()
        self.command = self.cluster.start(*words, "-r", self.name, "--runs-dir", str(self.runs))

    @property
    def run(self) -> str | None:
        """Its name, once it has one."""
        made = set(os.listdir(self.runs)) - self.before if self.runs.exists() else set()
        return next(iter(made), None)

    @property
    def mirror(self) -> Path:
        """The run as it is seen from here."""
        assert self.run is not None
        return (self.runs / self.run).resolve()

    @property
    def there(self) -> Path:
        """The run where the job writes it."""
        assert self.run is not None
        return self.cluster.folder / self.name / "runs" / self.run if self.tunnel else self.mirror

    @property
    def begun(self) -> bool:
        return self.run is not None and steps_done(self.there) >= 1

    @property
    def goes_on(self) -> bool:
        """Whether Slurm still has the job, on any of its machines."""
        name = json.loads((self.mirror / "attempts" / "1" / "handle.json").read_text())["job_name"]
        return bool(self.cluster.lab.run("squeue", "-h", "-n", name, "-o", "%A"))

    def end(self) -> End:
        assert self.command is not None
        out, err = self.command.communicate(timeout=300)
        assert "Traceback" not in out + err
        return End(self.command.returncode, out, err)


def two_sides(cluster: Cluster, sshd: Sshd, more: str = "") -> tuple[Side, Side]:
    return Side(cluster, f"near{more}", ()), Side(cluster, f"far{more}", tuple(sshd.profile.splitlines()))


@pytest.fixture
def sides(cluster: Cluster, sshd: Sshd) -> tuple[Side, Side]:
    """The login node itself, and a machine that sees nothing of the cluster."""
    return two_sides(cluster, sshd)


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster, sshd: Sshd) -> Iterator[tuple[Side, Side]]:
    """Jobs whose time ends. Slurm counts it in minutes, of which a busy machine may want one for the first step: the
    other tests run meanwhile, and leave their node alone."""
    lines = ("requeue = false", "signal_before_end_s = 0", "time = '3'", f"nodelist = '{cluster.lab.names[1]}'")
    sides = two_sides(cluster, sshd, "-limited")
    for side in sides:
        side.start((*TINY, *ENDLESS), *lines)
    until(lambda: all(side.begun for side in sides), 240)
    for side in sides:
        held(side.there, 1)
    yield sides
    for side in sides:
        if side.command is not None:
            side.command.kill()
            side.command.wait()


def ended(
    sides: Sequence[Side], *lines: str, words: Sequence[str] = (*TINY, *ENDLESS), by: Callable[[], object] | None = None
) -> list[End]:
    """How both commands end, whose jobs meet ``by`` in mid-run."""
    for side in sides:
        side.start(words, *lines)
    if by is not None:
        until(lambda: all(side.begun for side in sides), 240)
        by()
    return [side.end() for side in sides]


def test_node_failure(cluster: Cluster, sides: tuple[Side, Side]) -> None:
    node = cluster.lab.names[0]
    down = ("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    ends = ended(sides, "requeue = false", f"nodelist = '{node}'", by=lambda: cluster.lab.run(*down))
    cluster.lab.bring_back(node)
    for end in ends:
        assert (end.code, "lost its machine (NODE_FAIL" in end.err) == (9, True), end


def test_out_of_memory(cluster: Cluster, sides: tuple[Side, Side]) -> None:
    if not cluster.lab.limits_memory:
        pytest.skip("no memory controller of the kernel here, and Slurm says OUT_OF_MEMORY of that alone")
    for end in ended(sides, "requeue = false", "mem = '300M'"):
        assert (end.code, "ran out of memory (" in end.err) == (9, True), end
        assert "`mem` of the profile" in end.err


def two_groups(cluster: Cluster) -> tuple[str, str]:
    first, second = cluster.lab.names
    return f"nodelist = '{first}'", f"critic = {{ nodelist = '{second}', cpus_per_task = 1 }}"


def test_ppo_on_two_groups_of_machines(cluster: Cluster, sides: tuple[Side, Side]) -> None:
    """The critic's side on a node of its own: the figures are those of both sides on one."""
    alone = cluster.nemotron(*PPO, "--runs-dir", "local-ppo")
    assert alone.returncode == 0, alone.stderr
    for side, end in zip(sides, ended(sides, *two_groups(cluster), words=PPO), strict=True):
        assert end.code == 0, end
        assert "actor and critic talk over plain HTTP" in end.err
        assert heldout(side.mirror) == heldout(next((cluster.folder / "local-ppo").iterdir()))
        assert json.loads((side.there / "attempts" / "1" / "critic.json").read_text())["host"] != "0.0.0.0"
    until(lambda: not any(side.goes_on for side in sides))


def test_a_killed_critic_ends_its_actor(cluster: Cluster, sides: tuple[Side, Side]) -> None:
    def kill() -> None:
        for side in sides:
            critics = processes(f"nemotron.rl.critic --job .*{side.run}")
            assert critics
            for critic in critics:
                os.kill(critic, signal.SIGKILL)

    words = (*PPO[:-2], "ppo.max_num_steps=1000", "ppo.max_num_epochs=1000")
    ends = ended(sides, *two_groups(cluster), "requeue = false", words=words, by=kill)
    for side, end in zip(sides, ends, strict=True):
        assert end.code == 9, end
        assert "critic" in json.loads((side.mirror / "status.json").read_text())["error"]
    until(lambda: not any(side.goes_on for side in sides))
    until(lambda: [processes(f"{side.run}/") for side in sides] == [[], []])


def test_time_limit(limited: tuple[Side, Side]) -> None:
    for end in (side.end() for side in limited):
        assert (end.code, "reached its time limit" in end.err) == (130, True), end


def test_preempted(cluster: Cluster, sides: tuple[Side, Side]) -> None:
    node = cluster.lab.names[1]
    urgent = ("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    low = ("requeue = false", "partition = 'low'", f"nodelist = '{node}'")
    for end in ended(sides, *low, by=lambda: cluster.lab.run(*urgent)):
        assert (end.code, "was preempted (PREEMPTED" in end.err) == (130, True), end
