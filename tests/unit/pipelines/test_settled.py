"""A job of a cluster that waits for another run: its worker finds what was promised, and compiles it again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron import snapshot
from nemotron.artifacts.inputs import hashed
from nemotron.artifacts.made import made_by
from nemotron.engines.settle import settled
from nemotron.errors import ArtifactError, CompileError
from nemotron.executors.base import How
from nemotron.executors.elsewhere import launch_of
from nemotron.job import Asked, Awaited, CompiledJob
from nemotron.pipelines import reuse
from nemotron.pipelines.chain import Chain, compile_chain
from nemotron.pipelines.file import read_pipeline
from nemotron.runs.folder import RunFolder, list_runs, new_run_id
from tests.in_process import nemotron
from tests.unit.pipelines.test_broken import WHOLE


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """Pairs that were prepared here, and the rest of the pipeline for a Slurm."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    shared = tmp_path / "shared"
    text = f'[batch]\nexecutor = "slurm"\npartition = "batch"\nremote_job_dir = "{shared}"\n'
    (tmp_path / "profiles" / "batch.toml").write_text(text)
    (tmp_path / "mine.yaml").write_text(WHOLE)
    done = nemotron("pipelines", "run", "mine.yaml", "--until", "pairs", cwd=tmp_path)
    assert done.code == 0, done.stderr
    code = shared / "code" / snapshot.folder_name()
    code.mkdir(parents=True)
    (code / "nemotron").symlink_to(snapshot.PACKAGE)
    return compile_chain(read_pipeline(Path("mine.yaml")), Path("runs"), profile="batch")


def waiting(chain: Chain, run: RunFolder) -> CompiledJob:
    """The job of the reward model as it is submitted before the pairs are there."""
    node = chain.node("rm")
    (one,) = node.bindings
    plan = node.compile(chain.runs_dir, {one.key: one.promised}, {one.promised: chain.promised[one.promised]})
    plan = replace(plan, run_id=new_run_id(plan.step, node.name))
    assert node.profile is not None
    _, launch = launch_of(plan, lambda _: Asked(), node.profile, How(), rehearsal=False)
    assert launch is not None
    awaited = Awaited(key=one.key, type=one.type, path=one.promised, run=str(run.path))
    return launch.job.model_copy(update={"awaits": (awaited,)})


def test_what_was_promised_is_found_and_is_what_a_later_pipeline_compares(chain: Chain) -> None:
    (pairs,) = list_runs(chain.runs_dir)
    before = waiting(chain, pairs)
    assert before.config["data"]["manifest_path"] == "/pipeline/pairs/manifest.json"
    job = settled(before, chain.runs_dir)
    manifest = made_by(pairs, "prepared_data")
    assert job.config["data"]["manifest_path"] == str(manifest)
    assert job.awaits == ()
    node = chain.node("rm")
    (one,) = node.bindings
    direct = node.compile(chain.runs_dir, {one.key: str(manifest)}, shared=[pairs.path]).job()
    assert [entry.key for entry in job.inputs] == [entry.key for entry in direct.inputs]
    known, wanted = (each.model_copy(update={"inputs": tuple(map(hashed, each.inputs))}) for each in (job, direct))
    assert known.config != wanted.config, "the product's files lie elsewhere on the cluster"
    assert reuse._outline(known) == reuse._outline(wanted)
    assert reuse._by_content(known) == reuse._by_content(wanted) is not None


def test_what_is_not_what_was_promised_ends_the_job_before_it_begins(chain: Chain) -> None:
    (pairs,) = list_runs(chain.runs_dir)
    job = waiting(chain, pairs)
    manifest = made_by(pairs, "prepared_data")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "kind": "prompt"}))
    with pytest.raises(CompileError) as caught:
        settled(job, chain.runs_dir)
    (error,) = (one for one in caught.value.findings if one.severity == "error")
    assert "of the kind `prompt`" in error.message
    manifest.unlink()
    with pytest.raises(ArtifactError, match="waits for another run"):
        settled(job, chain.runs_dir)
