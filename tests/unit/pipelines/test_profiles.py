"""What a profile cannot do for a node is found before anything is submitted, also for the last one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from nemotron.manifest import declaration, find_step
from nemotron.pipelines import chain
from tests.in_process import nemotron
from tests.steps.test_own_steps import BARE
from tests.unit.pipelines.test_broken import WHOLE

BATCH = """\
[batch]
executor = "slurm"
partition = "batch"
remote_job_dir = "/lustre/jobs"
container_image = "/lustre/nemo-rl.sqsh"
mounts = ["/lustre:/lustre"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "batch.toml").write_text(BATCH)
    (tmp_path / "mine.yaml").write_text(f"{WHOLE}    overrides: {{output_dir: /elsewhere/out}}\n")
    return tmp_path


def test_a_path_of_the_last_node_that_its_job_cannot_reach(folder: Path) -> None:
    done = nemotron("pipelines", "run", "mine.yaml", "-b", "batch", cwd=folder, bare=True)
    assert done.code == 3, done.stderr
    assert "node `hf`: model: `/elsewhere/out` is outside of what the job can reach" in done.stderr
    assert "--> mine.yaml:37:" in done.stderr
    assert "1 problem found, nothing was started" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["mine.yaml", "profiles"]


def test_a_profile_that_is_not_filled_in_is_one_error_for_all_nodes(folder: Path) -> None:
    words = ("pipelines", "run", "ppo", "-b", "slurm_base")
    done = nemotron(*words, cwd=folder, bare=True)
    assert done.code == 3, done.stderr
    assert done.stderr.count("error: profile `slurm_base`") == done.stderr.count("error: ") - 1 == 1
    assert "still are placeholders" in done.stderr
    assert "nemotron profiles init" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["mine.yaml", "profiles"]
    # A dry run shows the whole all the same, and says it once.
    dry = nemotron(*words, "--dry-run", cwd=folder, bare=True)
    assert dry.code == 0, dry.stderr
    assert dry.stderr.count("placeholders; a submission refuses this") == 1
    assert nemotron("pipelines", "show", "ppo", cwd=folder).code == 0


def test_a_step_of_ones_own_does_not_go_along(folder: Path) -> None:
    step = folder / "steps" / "mine" / "bare"
    (step / "config").mkdir(parents=True)
    (step / "step.toml").write_text('title = "Nothing"\ndescription = "It ends."\nlaunch = "python"\n')
    (step / "step.py").write_text(BARE)
    (step / "config" / "default.yaml").write_text("{}\n")
    nodes = {"first": {"step": "rl_prep", "config": "tiny"}, "last": {"step": "mine/bare", "after": "first"}}
    (folder / "two.yaml").write_text(json.dumps({"nodes": nodes, "profile": "batch"}))
    done = nemotron("--steps-dir", "steps", "pipelines", "run", "two.yaml", cwd=folder, bare=True)
    assert done.code == 10, done.stderr
    assert "`mine/bare` is a step of your own, whose code does not go along to `batch`" in done.stderr
    assert not (folder / "pipelines").exists()


def test_an_engine_that_the_last_node_does_not_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_step("rlvr")
    declared = declaration(found)
    without = replace(cast(Any, declared), engines={})
    monkeypatch.setattr(chain, "declaration", lambda step: without if step.id == found.id else declaration(step))
    nodes = {
        "first": {"step": "rl_prep", "config": "tiny"},
        "last": {"step": "rlvr", "config": "tiny", "after": "first"},
    }
    (folder / "two.yaml").write_text(json.dumps({"nodes": nodes}))
    done = nemotron("pipelines", "run", "two.yaml", cwd=folder, bare=True)
    assert done.code == 10, done.stderr
    assert "node `last`: the engine `embedded` is not available yet" in done.stderr
    assert not (folder / "pipelines").exists()
    assert nemotron("pipelines", "run", "two.yaml", "--dry-run", cwd=folder, bare=True).code == 0
