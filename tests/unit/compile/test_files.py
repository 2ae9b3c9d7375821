"""Rules that look at files, folders, the environment and the machine."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.compile.probes.model_files import read_model
from nemotron.install import install_extra
from nemotron.manifest import EngineName
from nemotron.place import Place
from tests.unit.compile.compile_world import CLUSTER, LAPTOP, NODE, Compile, named, row, write_model, write_rows

JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"


def test_missing_data_file(compiled: Compile) -> None:
    plan = compiled("own.yaml", "data.train.data_path=nowhere.jsonl")
    (finding,) = named(plan, "data-file")
    assert (finding.exit_code, str(finding.origin)) == (5, "command line, argument 5")
    assert "nowhere.jsonl" in finding.message
    assert plan.exit_code == 5
    assert not named(plan, "too-few-rows")


def test_empty_data_file(compiled: Compile, world: Path) -> None:
    (world / "own.jsonl").write_text("\n\n")
    assert [f.message for f in named(compiled("own.yaml"), "data-file")] == ["the train data `own.jsonl` is empty"]


def test_a_folder_is_no_data_file(compiled: Compile, world: Path) -> None:
    (finding,) = named(compiled("own.yaml", f"data.train.data_path={world}"), "data-file")
    assert "cannot be read" in finding.message


def test_broken_rows_are_named_by_line_and_counted(compiled: Compile, world: Path) -> None:
    good = json.dumps(row("fine"))
    lines = ['{"prompt": ', good, "[1]", '{"words": "no prompt key"}', "\udcff", '{"prompt": 3}', *[good] * 100]
    (world / "own.jsonl").write_text("\n".join(lines), errors="surrogateescape")
    found = named(compiled("own.yaml"), "data-row")
    assert [str(f.origin) for f in found] == [
        *("own.jsonl:1:11", "own.jsonl:3", "own.jsonl:4"),
        "own.jsonl:5",
    ]
    assert found[2].message == "train data: row has no prompt"
    assert "the row has `words`" in (found[2].hint or "")
    assert "2 rows in all cannot be used for still other reasons" in found[3].message
    assert {f.exit_code for f in found} == {5}


def test_a_dataset_smaller_than_a_batch(compiled: Compile, world: Path) -> None:
    write_rows(world / "own.jsonl", [row(str(i)) for i in range(63)])
    plan = compiled("own.yaml")
    (finding,) = named(plan, "too-few-rows")
    assert finding.message == ("63 training rows are fewer than one batch of 64 prompts: the run would make no step")
    assert plan.exit_code == 5
    write_rows(world / "own.jsonl", [row(str(i)) for i in range(64)])
    assert compiled("own.yaml").ok


def test_the_three_row_forms(compiled: Compile, world: Path) -> None:
    rows = [{"prompt": f"a {i}"} for i in range(30)]
    rows += [{"messages": [{"role": "user", "content": f"b {i}"}]} for i in range(30)]  # type: ignore[dict-item]
    write_rows(world / "own.jsonl", [*rows, *[row(f"c {i}") for i in range(30)]])
    assert compiled("own.yaml").ok


def test_split_overlap_is_counted(compiled: Compile, world: Path) -> None:
    write_rows(world / "val.jsonl", [row("own 1"), row("own 2"), row("new")])
    (finding,) = named(compiled("own.yaml"), "split-overlap")
    assert (finding.severity, finding.message) == ("warning", "2 of 3 validation prompts are also trained on")


def test_large_files_are_counted_and_sampled(compiled: Compile, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron.compile.probes import survey

    monkeypatch.setattr(survey, "READ_ALL_BYTES", 1000)
    monkeypatch.setattr(survey, "FIRST_ROWS", 10)
    monkeypatch.setattr(survey, "LOOK_S", 0.0)
    path = write_rows(world / "big.jsonl", [row("x" * 3000 + str(i)) for i in range(1500)])
    found = survey.survey(path)
    assert found.rows == 1500
    assert 10 < found.read < 1500
    assert not found.complete
    plan = compiled("own.yaml", f"data.train.data_path={path}")
    assert plan.work is not None
    assert plan.work.steps == 1500 // 64 * 5


def test_rows_that_name_a_wrong_agent_matter_to_nemo_gym_only(compiled: Compile, world: Path) -> None:
    """Rows that name none are for the agent of the judge, there as here."""
    rows = [row("first"), {"prompt": "second"}, *[{"prompt": str(i), "agent_ref": {"name": 7}} for i in range(98)]]
    write_rows(world / "own.jsonl", rows)
    assert compiled("own.yaml").ok
    (finding,) = named(compiled("own.yaml", "engine=nemo_rl", place=NODE), "data-row")
    assert finding.message == "train data: `agent_ref` names no agent (and 97 more rows)"
    assert str(finding.origin) == "own.jsonl:3"


def test_no_data_path(compiled: Compile) -> None:
    (finding,) = named(compiled("own.yaml", "~data.train.data_path"), "no-data-path")
    assert finding.exit_code == 5


def test_the_sample_is_fine_for_tiny_and_a_warning_for_a_real_model(compiled: Compile) -> None:
    assert not named(compiled("tiny"), "sample-data")
    (finding,) = named(compiled("default"), "sample-data")
    assert finding.severity == "warning"
    assert finding.message.startswith("no training and validation prompts are set")
    assert finding.hint == "set `data.train.data_path=FILE.jsonl`, or `RL_TRAIN_DATA` in the environment"
    (finding,) = named(compiled("default", "data.train.data_path=own.jsonl"), "sample-data")
    assert finding.message.startswith("no validation prompts are set")
    assert finding.hint == "set `data.validation.data_path=FILE.jsonl`, or `RL_VALIDATION_DATA` in the environment"
    assert not named(compiled("own.yaml"), "sample-data")


def test_model_folder_that_does_not_exist(compiled: Compile) -> None:
    plan = compiled("own.yaml", "policy.model_name=/no/such/model")
    assert {f.exit_code for f in named(plan, "model-files")} == {6}
    assert plan.exit_code == 6


def test_hub_names_are_notes_unless_downloads_are_off(compiled: Compile) -> None:
    (finding,) = named(compiled("own.yaml", "policy.model_name=owner/name"), "model-files")
    assert finding.severity == "note"
    offline = compiled("own.yaml", "policy.model_name=owner/name", place=replace(LAPTOP, offline=True))
    assert [f.severity for f in named(offline, "model-files")] == ["error"]


def test_a_cached_hub_model_is_found(compiled: Compile, world: Path) -> None:
    write_model(world / "hub/models--owner--name/snapshots/abc")
    plan = compiled("own.yaml", "policy.model_name=owner/name", place=replace(LAPTOP, hub_cache=world / "hub"))
    assert not named(plan, "model-files")
    assert plan.memory is not None


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_model_folders(compiled: Compile, world: Path, missing: str) -> None:
    write_model(world / "other")
    (world / "other" / missing).unlink()
    (finding,) = named(compiled("own.yaml", "policy.model_name=other"), "model-files")
    assert finding.exit_code == 6
    assert "lacks" in finding.message


def test_a_model_that_is_a_file(compiled: Compile) -> None:
    (finding,) = named(compiled("own.yaml", "policy.model_name=own.yaml"), "model-files")
    assert "is a file" in finding.message


def test_judge_folder_is_checked_unless_an_endpoint_is_given(compiled: Compile) -> None:
    missing = f"{JUDGE}.model=/no/such/judge"
    assert [f.key for f in named(compiled("own.yaml", missing), "model-files")] == [f"{JUDGE}.model"]
    plan = compiled("own.yaml", missing, f"{JUDGE}.base_url='http://localhost:9/v1'")
    assert plan.ok
    [where] = [p.where for p in plan.processes if p.role == "judge"]
    assert where.startswith("endpoint http://localhost:9/v1, asked in ")


def test_tokenizer_elsewhere(compiled: Compile, world: Path) -> None:
    (finding,) = named(compiled("own.yaml", "policy.tokenizer.name=./nowhere"), "tokenizer-files")
    assert finding.exit_code == 6
    (world / "bare").mkdir()
    (finding,) = named(compiled("own.yaml", "policy.tokenizer.name=bare"), "tokenizer-files")
    assert "holds no tokenizer" in finding.message
    (finding,) = named(compiled("own.yaml", "policy.tokenizer.chat_template=no.jinja"), "tokenizer-files")
    assert "no.jinja" in finding.message


def test_tokenizer_larger_than_the_embedding(compiled: Compile, world: Path) -> None:
    write_model(world / "wide", vocabulary=256, tokens=300)
    (finding,) = named(compiled("own.yaml", "policy.model_name=wide"), "vocabulary")
    assert "300 tokens" in finding.message
    assert finding.exit_code == 6


def test_sequences_beyond_the_positions_of_the_model(compiled: Compile, world: Path) -> None:
    write_model(world / "short", max_position_embeddings=1024)
    (finding,) = named(compiled("own.yaml", "policy.model_name=short"), "model-context")
    assert "1024 positions" in finding.message


def test_memory(compiled: Compile) -> None:
    small = replace(LAPTOP, memory_bytes=2**20)
    assert [f.severity for f in named(compiled("own.yaml", place=small), "memory")] == ["warning"]
    assert not named(compiled("own.yaml", place=replace(small, has_cuda=True)), "memory")


def test_disk_space(compiled: Compile, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron.compile.rules import output

    usage = output.shutil.disk_usage(world)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert [f.severity for f in named(compiled("own.yaml"), "disk-space")] == ["warning"]


def test_output_folder_below_a_file(compiled: Compile, world: Path) -> None:
    (world / "taken").write_text("")
    plan = compiled("own.yaml", runs_dir="taken/runs")
    assert plan.exit_code == 8
    (finding,) = named(plan, "output-folder")
    assert "is not a folder" in finding.message
    assert (finding.key, finding.origin) == (None, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_without_permission(compiled: Compile, world: Path) -> None:
    (world / "closed").mkdir(mode=0o500)
    assert compiled("own.yaml", runs_dir="closed/runs").exit_code == 8


def test_nothing_is_written(compiled: Compile, world: Path) -> None:
    before = sorted(world.rglob("*"))
    compiled("own.yaml").job()
    assert sorted(world.rglob("*")) == before


def test_environment_of_a_cluster_job(compiled: Compile) -> None:
    def names(**env: str) -> list[str]:
        found = compiled("own.yaml", "engine=nemo_rl", place=NODE, env=env).findings
        return [f.name for f in found if f.name != "limits-from-outside"]

    arch = {"TORCH_CUDA_ARCH_LIST": "9.0"}
    assert names() == ["cuda-arch-list"]
    assert names(**arch) == []
    assert names(**arch, NRL_NSYS_WORKER_PATTERNS="*") == ["nsys-variables"]
    assert names(**arch, NRL_NSYS_WORKER_PATTERNS="*", NRL_NSYS_PROFILE_STEP_RANGE="3") == ["nsys-variables"]
    assert names(**arch, NRL_NSYS_WORKER_PATTERNS="*", NRL_NSYS_PROFILE_STEP_RANGE="3:5") == []


@pytest.mark.parametrize(
    ("place", "engines", "engine", "reason"),
    [
        (NODE, ("embedded", "nemo_rl"), "nemo_rl", "NeMo-RL is installed"),
        (replace(NODE, has_cuda=False), ("embedded", "nemo_rl"), "embedded", "none is visible"),
        (LAPTOP, ("embedded", "nemo_rl"), "embedded", "not installed here"),
        (NODE, ("embedded",), "embedded", "does not run on NeMo-RL"),
        (CLUSTER, ("embedded", "nemo_rl"), "nemo_rl", "`dgx` has GPUs"),
        (replace(CLUSTER, modules={"nemo_rl": False}), ("embedded", "nemo_rl"), "embedded", "not installed on `dgx`"),
    ],
)
def test_auto_engine(
    compiled: Compile, place: Place, engines: tuple[EngineName, ...], engine: str, reason: str
) -> None:
    plan = compiled("own.yaml", place=place, engines=engines)
    assert plan.engine == engine
    assert reason in plan.engine_reason
    assert plan.ok


@pytest.mark.parametrize(
    ("place", "engines"),
    [
        (replace(NODE, has_cuda=False), ("embedded", "nemo_rl")),
        (LAPTOP, ("embedded", "nemo_rl")),
        (NODE, ("embedded",)),
    ],
)
def test_forced_nemo_rl_that_is_not_there(compiled: Compile, place: Place, engines: tuple[EngineName, ...]) -> None:
    plan = compiled("own.yaml", "engine=nemo_rl", place=place, engines=engines)
    assert (plan.exit_code, plan.engine) == (10, "nemo_rl")


def test_what_lies_on_a_cluster_is_not_looked_for_here(compiled: Compile) -> None:
    words = ("policy.model_name=/lustre/model", "data.train.data_path=/lustre/train.jsonl")
    plan = compiled("own.yaml", *words, place=replace(CLUSTER, shared=(Path.cwd(),)))
    assert plan.ok, plan.errors
    notes = [(finding.key, finding.message) for finding in named(plan, "not-looked-at")]
    assert notes == [
        ("policy.model_name", "`/lustre/model` lies on `dgx` and was not looked at from here"),
        ("data.train.data_path", "`/lustre/train.jsonl` lies on `dgx` and was not looked at from here"),
    ]
    # What is the same folder on both sides is looked at as ever.
    broken = compiled("own.yaml", "data.train.data_path=gone.jsonl", place=replace(CLUSTER, shared=(Path.cwd(),)))
    assert [finding.key for finding in broken.errors] == ["data.train.data_path"]


def test_embedded_without_its_libraries(compiled: Compile) -> None:
    plan = compiled("own.yaml", place=replace(LAPTOP, modules={"torch": False, "transformers": False, "numpy": True}))
    assert plan.exit_code == 10
    (finding,) = named(plan, "engine-not-installed")
    assert str(finding.hint).startswith(install_extra("local"))
    assert "NeMo-RL is not installed here" in finding.message
    assert "`nemotron doctor`" in str(finding.hint)


def test_a_model_is_that_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, positions in (("one", 64), ("two", 128)):
        model = tmp_path / name / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
        monkeypatch.chdir(tmp_path / name)
        found = read_model("model", LAPTOP)
        assert found is not None
        assert found.positions == positions
