"""What runs made, by name: in a config, on the command line, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.made import _of_checkpoint, all_made
from nemotron.pipelines.state import started
from nemotron.runs.folder import list_runs
from tests.in_process import Result, nemotron


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that made a model, and one that converted it back by name."""
    folder = tmp_path_factory.mktemp("named")
    for words in (
        ("convert/megatron_to_hf", "-c", "tiny", "verify=weights"),
        ("convert/hf_to_megatron", "hf_model=${artifact:last:megatron_to_hf:checkpoint_hf}", "output_dir=back"),
    ):
        done = nemotron("steps", "run", *words, cwd=folder)
        assert done.code == 0, done.stderr
    return folder


def dry(folder: Path, *words: str) -> Result:
    return nemotron("steps", "run", "convert/hf_to_megatron", "--dry-run", "output_dir=new", *words, cwd=folder)


def test_a_name_is_recorded_as_its_path_with_its_hash(folder: Path) -> None:
    first, second = list_runs(folder / "runs")
    made = first.path / "hf"
    job = second.job()
    assert job.config["hf_model"] == str(made)
    assert [(one.key, one.path, one.fingerprint) for one in job.inputs] == [
        ("hf_model", str(made), fingerprint(made, "checkpoint_hf"))
    ]


@pytest.mark.parametrize("name", ["last", "last:megatron_to_hf", "ID", "runs/ID"])
def test_a_run_is_named_as_everywhere(folder: Path, name: str) -> None:
    first = list_runs(folder / "runs")[0]
    done = dry(folder, f"hf_model=${{artifact:{name.replace('ID', first.id)}:checkpoint_hf}}")
    assert done.code == 0, done.stderr
    assert str(first.path / "hf") in done.stdout


def test_a_name_stands_in_yaml_too(folder: Path) -> None:
    (folder / "mine.yaml").write_text("defaults: default\nhf_model: ${artifact:last:checkpoint_hf}\n")
    done = dry(folder, "-c", "mine.yaml")
    assert done.code == 0, done.stderr
    assert str(list_runs(folder / "runs")[0].path / "hf") in done.stdout


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("policy", 3, "write `${artifact:RUN:TYPE}`"),
        ("last:checkpoint_fh", 4, "did you mean `checkpoint_hf`?"),
        ("last:rlhf:checkpoint_hf", 4, "no run of a step `rlhf`"),
        ("last:megatron_to_hf:checkpoint_run", 4, "`convert/megatron_to_hf` makes no `checkpoint_run`"),
        ("nosuchrun:checkpoint_hf", 4, "no run `nosuchrun`"),
        ("last:eval_results", 4, "no run in `runs` makes a `eval_results`"),
    ],
)
def test_a_name_that_means_nothing(folder: Path, name: str, code: int, says: str) -> None:
    done = dry(folder, f"hf_model=${{artifact:{name}}}")
    assert done.code == code, done.stderr
    assert says in done.stderr
    assert "command line, argument" in done.stderr


def test_rows_in_shards_are_taken_by_their_manifest(tmp_path: Path) -> None:
    done = nemotron("steps", "run", "rl_prep", "-c", "tiny", "output_dir=prompts", cwd=tmp_path)
    assert done.code == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    assert dict(all_made(run)) == {"prepared_data": tmp_path / "prompts" / "manifest.json"}
    words = ("steps", "run", "ppo", "-c", "tiny", "--dry-run")
    refused = nemotron(*words, "data.train.data_path=${artifact:last:prompt_jsonl}", cwd=tmp_path)
    assert refused.code == 6, refused.stderr
    assert "its rows lie in shards" in refused.stderr
    assert "take its `prepared_data`" in refused.stderr
    assert "command line, argument" in refused.stderr
    taken = nemotron(*words, "data.manifest_path=${artifact:last:prepared_data}", cwd=tmp_path)
    assert str(tmp_path / "prompts" / "manifest.json") in taken.stdout, taken.stderr


def test_what_is_gone_is_said(folder: Path, tmp_path: Path) -> None:
    made = list_runs(folder / "runs")[0].path / "hf"
    made.rename(tmp_path / "hf")
    try:
        done = dry(folder, "hf_model=${artifact:last:checkpoint_hf}")
    finally:
        (tmp_path / "hf").rename(made)
    assert done.code == 6, done.stderr
    assert f"there is nothing at `{made}`" in done.stderr


def test_artifacts_list_shows_what_is_there(folder: Path) -> None:
    rows = json.loads(nemotron("artifacts", "list", "--json", cwd=folder).stdout)
    first, second = list_runs(folder / "runs")
    assert {(row["run"], row["type"], row["path"]) for row in rows} == {
        (run.id, kind, str(path)) for run in (first, second) for kind, path in all_made(run)
    }
    models = json.loads(nemotron("artifacts", "list", "--type", "checkpoint_hf", "--json", cwd=folder).stdout)
    assert [row["run"] for row in models] == [first.id]


def test_lineage_follows_the_chain_to_what_came_from_outside(folder: Path) -> None:
    first, second = list_runs(folder / "runs")
    link = json.loads(nemotron("artifacts", "lineage", "back", "--json", cwd=folder).stdout)
    assert (link["made"]["step"], link["made"]["run"]) == ("convert/hf_to_megatron", second.id)
    (model,) = link["inputs"]
    assert model["made"]["run"] == first.id
    assert model["made"]["config"] == first.job().fingerprint
    assert model["made"]["code"] == first.job().provenance.code
    assert model["fingerprint"] == fingerprint(first.path / "hf", "checkpoint_hf")
    (source,) = model["inputs"]
    assert source["path"].endswith("policy_megatron")
    assert source["made"] is None
    text = nemotron("artifacts", "lineage", "back", cwd=folder).stdout
    assert first.id in text
    assert second.id in text
    assert nemotron("artifacts", "lineage", "gone", cwd=folder).code == 6


def test_of_a_checkpoint_every_type_is_a_place_of_its_own(tmp_path: Path) -> None:
    step = tmp_path / "step_3"
    (step / "policy" / "adapter").mkdir(parents=True)
    model = step / "policy" / "weights" / "hf"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    assert _of_checkpoint(step, "checkpoint_run") == step
    assert _of_checkpoint(step, "checkpoint_lora") == step / "policy" / "adapter"
    assert _of_checkpoint(step, "checkpoint_hf") == model
    assert _of_checkpoint(step, "checkpoint_megatron") is None
    assert _of_checkpoint(step, "eval_results") is None


NAMED = """\
nodes:
  first:
    step: convert/megatron_to_hf
    config: tiny
    overrides: {verify: none, dtype: float16}
  second:
    step: convert/hf_to_megatron
    overrides: {hf_model: "${artifact:last:checkpoint_hf}", verify: none}
    after: first
"""


@pytest.mark.full
def test_in_a_pipeline_a_name_means_what_it_meant_when_it_began(tmp_path: Path) -> None:
    convert = ("steps", "run", "convert/megatron_to_hf", "-c", "tiny", "verify=none")
    assert nemotron(*convert, cwd=tmp_path).code == 0
    (meant,) = list_runs(tmp_path / "runs")
    (tmp_path / "mine.yaml").write_text(NAMED)
    done = nemotron("pipelines", "run", "mine.yaml", cwd=tmp_path)
    assert done.code == 0, done.stderr
    # Its own first node has made a newer one in the meantime.
    *_, newer, second = list_runs(tmp_path / "runs")
    assert dict(all_made(newer)).keys() == {"checkpoint_hf"}
    assert second.job().config["hf_model"] == str(meant.path / "hf")
    # So it can be gone on with, too.
    folder = started(tmp_path / "runs")[-1]
    assert folder.read().named == {"last:checkpoint_hf": str(meant.path / "hf")}
    state = folder.read()
    folder.write(state.with_node("second", state="interrupted", exit_code=130, run=None))
    again = nemotron("pipelines", "resume", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert folder.read().node("second").state == "reused"
