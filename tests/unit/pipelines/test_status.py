"""What is asked of pipelines from outside, also where one of them cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron.errors import ArtifactError
from nemotron.pipelines.chain import compile_chain
from nemotron.pipelines.file import read_pipeline, shipped
from nemotron.pipelines.start import begin, reopen
from nemotron.pipelines.state import FILE
from tests.in_process import nemotron


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', "\x00"])
def test_one_that_cannot_be_read_hides_no_other(content: str, tmp_path: Path) -> None:
    chain = compile_chain(read_pipeline(shipped()["ppo"]), tmp_path / "runs")
    whole, broken = begin(chain), begin(chain)
    (broken.path / FILE).write_text(content)
    told = nemotron("pipelines", "status", cwd=tmp_path)
    assert told.code == 0, told.stderr
    rows = {line.split()[0]: line.split()[1:] for line in told.stdout.splitlines()[1:]}
    assert rows == {whole.id: ["killed", "0/6"], broken.id: ["unreadable"]}
    assert "warning: cannot read this pipeline" in told.stderr
    listed = json.loads(nemotron("pipelines", "status", "--json", cwd=tmp_path).stdout)
    assert {one["id"]: one["state"] for one in listed} == {whole.id: "killed", broken.id: "unreadable"}
    assert nemotron("pipelines", "status", whole.id, cwd=tmp_path).code == 0
    for command in ("status", "resume", "cancel"):
        refused = nemotron("pipelines", command, broken.id, cwd=tmp_path)
        assert refused.code == 6, refused.stderr
        assert f"{broken.id}/{FILE}" in refused.stderr
        assert "hint: `nemotron pipelines run` starts a new one" in refused.stderr


def test_what_a_killed_writer_left_goes_with_the_next_command(tmp_path: Path) -> None:
    folder = begin(compile_chain(read_pipeline(shipped()["ppo"]), tmp_path / "runs"))
    (folder.path / f".{FILE}.0123abcd.tmp").write_text('{"no')
    with folder.alone():
        assert not list(folder.path.glob(".*"))


def test_one_answer_has_one_form(tmp_path: Path) -> None:
    refused = nemotron("pipelines", "show", "ppo", "--svg", "--json", cwd=tmp_path)
    assert refused.code == 2
    assert refused.stdout == ""
    assert "give one of them" in refused.stderr


def test_one_that_goes_on_names_the_nodes_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.yaml"
    text = "nodes: {rows: {step: rl_prep, config: tiny, overrides: {seed: 1}}}\n"
    own.write_text(text)
    folder = begin(compile_chain(read_pipeline(own), tmp_path / "runs"))
    own.write_text(text.replace("seed: 1", "seed: 2"))
    with pytest.raises(ArtifactError, match=r"another config of `rows`$"):
        reopen(folder)
