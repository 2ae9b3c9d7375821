"""Every command of docs/guides/slurm.md, in its order, on a real Slurm: from an empty folder to a finished run.

What the guide says about the profile is filled in as far as the lab has it: no container, no GPUs, and no limits. Its
runs are shorter here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.test_guides import commands
from tests.integration.test_slurm import Cluster, cluster, held

__all__ = ["cluster"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def fill_in(file: Path, shared: Path) -> None:
    """What a user does with the file that `profiles init` has made."""
    text = file.read_text()
    text = text.replace("<account>", "mine").replace("<partition>", "batch").replace("<shared folder>", str(shared))
    text = re.sub(r"^(mounts|container_image) = .*$", "", text, flags=re.MULTILINE)
    text = text.replace('time = "04:00:00"', f'time = "04:00:00"\npython = "{sys.executable}"')
    file.write_text(
        re.sub(
            r"^(nodes|gpus_per_node) = \d",
            lambda found: f"{found[1]} = {found[1] == 'nodes':d}",
            text,
            flags=re.MULTILINE,
        )
    )


SHORT = "eval.heldout.max_samples=16"


class Guide:
    """The commands, of which each is taken once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.left = cluster, commands("slurm")

    def next(self, *begin: str, run: str = "RUN", steps: int = 5) -> CompletedProcess[str]:
        """Run the next command, which begins so; RUN in it is ``run``, and a run has so many steps."""
        words = self.left.pop(0)
        assert tuple(words[: len(begin)]) == begin
        short = (f"grpo.max_num_steps={steps}", SHORT) if words[:2] == ["steps", "run"] else ()
        done = self.cluster.nemotron(*(run if word == "RUN" else word for word in words), *short)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done


def test_from_an_empty_folder_to_a_finished_run(cluster: Cluster) -> None:
    guide, status = Guide(cluster), _status(cluster)
    guide.next("profiles", "init")
    fill_in(cluster.folder / "profiles" / "slurm.toml", cluster.folder / "shared")
    assert "account: mine" in guide.next("profiles", "show").stdout
    assert "slurm-wlm" in guide.next("profiles", "check").stdout
    submission = len(guide.left)
    assert "#SBATCH --time=04:00:00" in guide.next("steps", "run").stdout
    assert submission - len(guide.left) == 1
    run = guide.next("steps", "run").stdout.strip()
    assert "step 5/5" in guide.next("steps", "run").stdout
    finished = cluster.newest()
    assert (finished != run, status(finished)) == (True, "finished")
    assert run in guide.next("runs", "list").stdout
    assert "step 5/5" in guide.next("runs", "logs", "-f", run=run).stdout
    # One that there is something to cancel of.
    other = cluster.nemotron(*cluster.tiny("-b", "slurm_rl_nemo_rl_rlhf", "grpo.max_num_steps=12")).stdout.strip()
    held(cluster.run_dir(other), 1)
    guide.next("runs", "cancel", run=other)
    cluster.lab.wait_until_empty()
    assert status(other) in ("cancelled", "interrupted")
    assert "step 12/12" in guide.next("runs", "resume", run=other).stdout
    assert "--array=0-2" in guide.next("steps", "run").stdout
    # None of them has ended when it is cancelled.
    runs = guide.next("steps", "run", steps=1000).stdout.split()
    assert len(runs) == 3
    assert guide.left == []
    for one in runs:
        assert cluster.nemotron("runs", "cancel", one).returncode == 0
    cluster.lab.wait_until_empty()


def _status(cluster: Cluster) -> Callable[[str], str]:
    return lambda run: str(json.loads((cluster.run_dir(run) / "status.json").read_text())["state"])
