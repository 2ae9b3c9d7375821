"""What a run reads is its own when it goes on: the same files wherever that is, and unchanged, or by name not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.config import resolvers
from tests.in_process import Result, nemotron
from tests.steps.commands import only_run

pytestmark = pytest.mark.timeout(240)
TINY = resolvers.ASSETS / "tiny_world"
STEP = "rl/nemo_rl/dpo"
WORDS = (
    *("data.train.data_path=train.jsonl", "data.validation.data_path=data/validation.jsonl"),
    *("eval.heldout.data_path=heldout.jsonl", "eval.heldout.max_samples=4"),
    *("policy.model_name=model", "policy.pretrained_checkpoint.path=start", "policy.tokenizer.name=words"),
    *("policy.tokenizer.chat_template=chat.jinja", "policy.train_global_batch_size=8"),
    *("dpo.max_num_steps=2", "dpo.val_period=1", "dpo.val_batches=1", "checkpointing.save_period=1"),
)
INPUTS = {
    "data.train.data_path": "train.jsonl",
    "data.validation.data_path": "data/validation.jsonl",
    "eval.heldout.data_path": "heldout.jsonl",
    "policy.model_name": "model",
    "policy.pretrained_checkpoint.path": "start",
    "policy.tokenizer.name": "words",
    "policy.tokenizer.chat_template": "chat.jinja",
}


def cut_rows(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def swap_labels(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in swapped))


def one_bit(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = next(file for file in sorted((path / name).parent.rglob(Path(name).name)) if file.is_file())
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    return change


def add_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "rows are cut": ("data.train.data_path", cut_rows),
    "labels are swapped": ("data.train.data_path", swap_labels),
    "validation": ("data.validation.data_path", cut_rows),
    "held-out prompts": ("eval.heldout.data_path", cut_rows),
    "weights of the model": ("policy.model_name", one_bit("model.safetensors")),
    "where its turns end": ("policy.model_name", lambda path: (path / "generation_config.json").unlink()),
    "weights of the start": ("policy.pretrained_checkpoint.path", one_bit("iter_0000000/*.distcp")),
    "tokenizer": ("policy.tokenizer.name", lambda path: add_line(path / "tokenizer.json")),
    "template": ("policy.tokenizer.chat_template", add_line),
}


def world(folder: Path) -> Path:
    """Everything that the run reads, under names of its own."""
    (folder / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("validation", "data/validation")):
        lines = (TINY / "data" / f"pairs_{split}.jsonl").read_bytes().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_bytes(b"".join(lines[:24]))
    shutil.copy(TINY / "data" / "heldout.jsonl", folder / "heldout.jsonl")
    for name, source in (("model", "policy"), ("start", "policy_megatron"), ("words", "policy")):
        shutil.copytree(TINY / source, folder / name)
    (folder / "words" / "model.safetensors").unlink()
    shutil.copy(TINY / "policy" / "chat_template.jinja", folder / "chat.jinja")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A world and a run in it that has made its two steps."""
    folder = world(tmp_path_factory.mktemp("world") / "here")
    done = nemotron("steps", "run", STEP, "-c", "tiny", *WORDS, cwd=folder)
    assert done.code == 0, done.stderr
    return folder, only_run(folder / "runs")


def resume(run: Path, *words: str, steps: int = 3, cwd: Path | None = None) -> Result:
    return nemotron("runs", "resume", str(run), "--max-steps", str(steps), *words, cwd=cwd)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from texts(child)
    elif isinstance(value, str):
        yield value


def test_a_job_names_what_it_reads_wherever_it_goes_on(trained: tuple[Path, Path]) -> None:
    folder, run = trained
    job = json.loads((run / "job.json").read_bytes())
    assert {one["key"]: one["path"] for one in job["inputs"]} == {
        key: str(folder / name) for key, name in INPUTS.items()
    }
    assert all(one["fingerprint"] for one in job["inputs"])
    relative = {text for text in texts(job["config"]) if not Path(text).is_absolute() and (folder / text).exists()}
    assert relative == set()
    assert job["config"]["checkpointing"]["checkpoint_dir"] == str(run / "checkpoints")


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changed_is_named_and_nothing_is_touched(
    trained: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """The kind: between two attempts any input may change, and no run goes on as if it had not."""
    folder, run = trained
    key, change = CHANGES[name]
    path, kept = folder / INPUTS[key], tmp_path / "kept"
    (shutil.copytree if path.is_dir() else shutil.copy)(path, kept)
    before = files_of(run)
    change(path)
    try:
        for words in (["runs", "resume", str(run), "--max-steps", "3"], ["runs", "resume", "last", "--max-steps", "3"]):
            refused = nemotron(*words, cwd=folder)
            assert refused.code == 6, refused.stderr
            assert f"`{key}` ({path}) is not what it was" in refused.stderr
            assert "--accept-changed-inputs" in refused.stderr
        assert files_of(run) == before
    finally:
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, path)


def test_an_input_that_is_gone(trained: tuple[Path, Path]) -> None:
    folder, run = trained
    (folder / "heldout.jsonl").rename(folder / "elsewhere.jsonl")
    try:
        refused = resume(run, "--accept-changed-inputs")
        assert refused.code == 6
        assert "`eval.heldout.data_path` was read when this run began" in refused.stderr
    finally:
        (folder / "elsewhere.jsonl").rename(folder / "heldout.jsonl")


def test_steps_run_resume_refuses_too_and_the_same_words_elsewhere_are_another_job(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("runs"))
    words = ("steps", "run", STEP, "-c", "tiny", *WORDS, "--resume")
    runs = tmp_path / "runs"
    assert nemotron(*words, "--runs-dir", str(runs), cwd=folder).code == 0
    run = only_run(runs)
    status = json.loads((run / "status.json").read_bytes())
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    swap_labels(folder / "train.jsonl")
    refused = nemotron(*words, "--runs-dir", str(runs), cwd=folder)
    assert refused.code == 6
    assert "`data.train.data_path`" in refused.stderr
    other = world(tmp_path / "there")
    cut_rows(other / "train.jsonl")
    started = nemotron(*words, "--runs-dir", str(runs), cwd=other)
    assert started.code == 0, started.stderr
    assert "nothing to resume, starting a new run" in started.stderr
    assert len([path for path in runs.iterdir() if not path.name.startswith(".")]) == 2
    accepted = nemotron(*words, "--accept-changed-inputs", "--runs-dir", str(runs), cwd=folder)
    assert accepted.code == 0, accepted.stderr
    assert "going on in" in accepted.stderr
    assert nemotron(*words[:-1], "--accept-changed-inputs", cwd=folder).code == 2


def test_a_change_that_is_accepted_is_noted_in_the_run_and_in_its_checkpoints(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    train = trained[0] / "train.jsonl"
    kept = train.read_bytes()
    cut_rows(train)
    try:
        done = resume(run, "--accept-changed-inputs")
        assert done.code == 0, done.stderr
    finally:
        train.write_bytes(kept)
    job = json.loads((run / "job.json").read_bytes())
    [changed] = job["asked"]["resumed"][-1]["changed"]
    assert (changed["key"], changed["path"]) == ("data.train.data_path", str(train))
    assert changed["was"] != changed["now"]
    noted = {one["key"]: one["fingerprint"] for one in job["inputs"]}
    assert noted["data.train.data_path"] == changed["now"]
    for step, wanted in ((2, changed["was"]), (3, changed["now"])):
        record = run / "checkpoints" / f"step_{step}" / "policy" / "weights" / "nemotron_artifact.json"
        inputs = {one["key"]: one.get("fingerprint") for one in json.loads(record.read_bytes())["inputs"]}
        assert inputs["data.train.data_path"] == wanted


def test_a_run_goes_on_in_another_folder_and_where_it_was_moved(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Beside other files of the same names, and after its folder went elsewhere: its own rows, its own checkpoints."""
    other = world(tmp_path / "there")
    for name in ("train.jsonl", "data/validation.jsonl"):
        swap_labels(other / name)
    moved = tmp_path / "moved" / "of another name"
    shutil.copytree(trained[1], moved)
    before = files_of(trained[1])
    done = resume(moved, cwd=other)
    assert done.code == 0, done.stderr
    assert files_of(trained[1]) == before
    steps = [json.loads(line)["step"] for line in (moved / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [0, 1, 2, 3]
    assert (moved / "checkpoints" / "step_3").is_dir()
    job = json.loads((moved / "job.json").read_bytes())
    assert job["folder"] == str(moved)
    assert job["config"]["checkpointing"]["checkpoint_dir"] == str(moved / "checkpoints")
    assert job["inputs"] == json.loads((trained[1] / "job.json").read_bytes())["inputs"]
    shown = nemotron("runs", "show", str(moved), "--json")
    assert str(trained[1]) not in shown.stdout
