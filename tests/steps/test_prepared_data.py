"""`data_prep/rl_prep -c tiny` feeds `rlhf -c tiny` by the environment and by the command line, held-out prompts too."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.steps.commands import metrics, only_run, run, run_here, scripted_judge

QUICK = ("checkpointing.save_period=2", "eval.heldout.max_samples=16")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped data, prepared into compressed shards; the command says where the manifest is."""
    folder = tmp_path_factory.mktemp("prepared")
    words = ("--runs-dir", str(folder / "runs"), f"output_dir={folder / 'out'}", "compression=gzip")
    done = run_here([sys.executable, "-m", "nemotron", "steps", "run", "data_prep/rl_prep", "-c", "tiny", *words])
    assert done.code == 0, done.stderr
    return Path(done.stdout.strip())


def inputs(folder: Path) -> dict[str, dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "job.json").read_text())["inputs"]
    return {entry["key"]: entry for entry in found}


def test_through_the_environment(manifest: Path, tmp_path: Path) -> None:
    with scripted_judge() as judge:
        done = run(tmp_path, *QUICK, *judge, "grpo.max_num_steps=1", env={"RL_PREP_MANIFEST": str(manifest)})
    assert done.code == 0, done.stderr
    found = inputs(only_run(tmp_path))
    assert "data.train.data_path" not in found
    shards = [
        manifest.parent / shard["path"] for shard in json.loads(manifest.read_text())["splits"]["train"]["shards"]
    ]
    assert found["train data"]["files"] == [str(path) for path in shards]
    assert found["eval.heldout.data_path"]["path"].endswith("heldout.jsonl")


@pytest.mark.full
def test_through_the_command_line_with_its_heldout_split(manifest: Path, tmp_path: Path) -> None:
    done = run(tmp_path, *QUICK, "grpo.max_num_steps=2", f"data.manifest_path={manifest}", "eval.heldout.split=heldout")
    assert done.code == 0, done.stderr
    folder = only_run(tmp_path)
    found = inputs(folder)
    assert len(found["heldout data"]["files"]) == 2
    content = "\n".join(["training_jsonl", sha256(manifest.read_bytes()).hexdigest()])
    assert found["data.manifest_path"]["fingerprint"] == "sha256:" + sha256(content.encode()).hexdigest()
    records = list(folder.glob("checkpoints/step_2/**/nemotron_artifact.json"))
    assert records
    for record in records:
        assert json.loads(record.read_text())["inputs"] == list(found.values())
    status = json.loads((folder / "status.json").read_text())
    assert None not in (status["heldout_before"], status["heldout_after"])
    assert len(metrics(folder)) >= 2
    page = (folder / "report.html").read_text()
    assert str(manifest) in page
    # The rows that it was made of are where they come from, and not what this run was given.
    assert page.index(str(manifest)) < page.index("tiny_world/data/train.jsonl")


def test_a_shard_that_changes_after_the_dry_run(manifest: Path, tmp_path: Path) -> None:
    """The engine hashes what it reads, whatever the preflight had time for."""
    from nemotron.config.schema.data import DataConfig, DatasetConfig
    from nemotron.data.inputs import data_paths
    from nemotron.errors import DataError

    rows = DatasetConfig()
    config = DataConfig(train=rows, max_input_seq_length=None, shuffle=True, manifest_path=str(manifest))
    assert data_paths(config, "validation") == []
    [first, _] = data_paths(config, "train", verify=True)
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert len(data_paths(config, "train")) == 2
        with pytest.raises(DataError, match="another SHA-256"):
            data_paths(config, "train", verify=True)
    finally:
        first.write_bytes(content)


def test_the_dry_run_knows_whose_data_lie_there_as_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared already, by the same words with paths of this folder: nothing is to do. Of other rows: both refuse."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"question {i}"}) for i in range(30)]
    Path("rows.jsonl").write_text("\n".join(rows))
    words = ("steps", "run", "rl_prep", "blend_path=rows.jsonl", "output_dir=out", "num_shards_per_split=1")

    def codes(*more: str) -> list[int]:
        command = [sys.executable, "-m", "nemotron", *words, *more]
        return [run_here([*command, *dry]).code for dry in (["--dry-run"], [])]

    assert codes() == [0, 0]
    assert codes() == [0, 0]
    Path("rows.jsonl").write_text("\n".join(rows[1:]))
    assert codes() == [8, 8]
    assert codes("force=true") == [0, 0]
