"""The step as the command sees it: checks before the start, the description, the run on the shipped tiny world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.plan import Preflight, Surroundings
from nemotron.config.layers import Resolved
from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.manifest import resolve_manifest
from nemotron.data.prep.prepare import prepare
from nemotron.data.rows import read_prompts
from nemotron.place import Place
from nemotron.runs.folder import RunFolder
from nemotron.steps.data_prep.rl_prep import job, step
from tests.compiled_jobs import attempt_at, compiled
from tests.unit.data.prep_data import config, files_of, prompts, write_rows

NOWHERE = Resolved(values={}, raw={}, origins={}, files=())


def preflight(settings: DataPrepConfig, tmp_path: Path) -> Preflight:
    return step.STEP.preflight(settings, NOWHERE, Surroundings(Place(), {}, tmp_path / "runs"))


def findings(tmp_path: Path, source: Any, **changes: Any) -> list[tuple[str, int]]:
    found = preflight(config(tmp_path / "out", source, **changes), tmp_path).findings
    return [(finding.name, finding.exit_code) for finding in found]


def test_checks_before_the_start(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "in.jsonl", prompts(3))
    assert findings(tmp_path, good) == []
    assert findings(tmp_path, tmp_path / "none.jsonl") == [("source-missing", 5)]
    assert findings(tmp_path, {"datasets": [{"path": "a", "wieght": 1}]}) == [("blend-broken", 5)]
    assert findings(tmp_path, good, split={"mode": "hash", "shares": {"test": 1.0}}) == [("split-shares", 3)]
    assert findings(tmp_path, good, weights="shares") == [("shares-without-rows", 3)]
    assert findings(tmp_path, good, blend={"train": [str(good)]}) == [("blend-broken", 3)]
    assert findings(tmp_path, good, output_dir=str(tmp_path)) == [("output-folder", 5)]
    assert findings(tmp_path, good, output_dir=str(good)) == [("output-folder", 8)]
    assert not (tmp_path / "out").exists()


def test_a_plan_opens_no_connection(tmp_path: Path) -> None:
    settings = config(tmp_path / "out", {"datasets": [{"path": "hf://org/name@main"}]})
    found = preflight(settings, tmp_path)
    assert found.findings == ()
    assert [file.path for file in found.inputs] == ["hf://org/name@main"]
    assert [process.role for process in found.processes] == ["data"]
    assert [file.role for file in found.outputs] == ["shards", "manifest", "rejects"]


def test_packages_are_asked_of_the_place_that_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine lacks only keeps it from looking; what the other is known to lack stops the job."""
    shared = write_rows(tmp_path / "in.jsonl", prompts(3))
    far = Place(name="far", is_here=False, shared=(tmp_path,))

    def found(place: Place, source: Any) -> list[tuple[str, str]]:
        settings, where = config(tmp_path / "out", source), Surroundings(place, {}, tmp_path / "runs")
        return [(one.severity, one.name) for one in step.STEP.preflight(settings, NOWHERE, where).findings]

    assert found(far, shared) == []
    assert found(replace(far, modules={"orjson": False}), shared) == [("error", "package-missing")]
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    assert found(far, shared) == [("note", "not-looked-at")]
    assert found(far, "/mnt/far/in.jsonl") == [("note", "not-looked-at")]


def test_a_hub_data_set_without_revision_is_a_warning(tmp_path: Path) -> None:
    settings = config(tmp_path / "out", {"datasets": [{"path": "hf://org/name"}]})
    assert [(f.severity, f.name) for f in preflight(settings, tmp_path).findings] == [("warning", "unpinned-source")]


def test_the_run_prints_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*prompts(30), b"broken"])
    settings = config(tmp_path / "out", source, num_shards_per_split=2)
    job = compiled(step="data_prep/rl_prep", engine="plain", config=settings.model_dump())
    run = RunFolder.create(tmp_path / "runs", job)
    with attempt_at(run) as attempt:
        step.run(attempt)
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out' / 'manifest.json'}\n"
    assert "rejected: 1 (1 not-json)" in said.err
    assert run.status().state == "finished"
    shards = resolve_manifest(Path(said.out.strip()))
    assert sum(len(list(read_prompts(path))) for paths in shards.values() for path in paths) == 30
    with attempt_at(run) as attempt:
        step.run(attempt)
    assert "nothing to do" in capsys.readouterr().err


def test_what_the_output_refuses_is_found_before_the_start(tmp_path: Path) -> None:
    good, other = write_rows(tmp_path / "in.jsonl", prompts(30)), write_rows(tmp_path / "other.jsonl", prompts(31))
    prepare(config(tmp_path / "out", good))
    before = files_of(tmp_path / "out")
    assert findings(tmp_path, good) == []
    assert findings(tmp_path, other) == [("output-folder", 8)]
    assert findings(tmp_path, good, seed=7) == [("output-folder", 8)]
    assert findings(tmp_path, other, force=True) == []
    assert findings(tmp_path, good, output_dir=str(good / "inside")) == [("output-folder", 8)]
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(("texts", "empty"), [([""], True), (["\n\n", ""], True), (["", '{"prompt": "a"}\n'], False)])
def test_sources_without_a_single_row_are_found_before_the_start(tmp_path: Path, texts: list[str], empty: bool) -> None:
    (tmp_path / "in").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "in" / f"{number}.jsonl").write_text(text)
    assert findings(tmp_path, tmp_path / "in") == ([("source-missing", 5)] if empty else [])
