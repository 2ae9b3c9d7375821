"""Recognise, fingerprint, inspect and verify artifacts on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.inspect import CheckpointFacts, DataFacts, PreparedFacts, ResultFacts, inspect
from nemotron.artifacts.kinds import recognise
from nemotron.artifacts.lineage import lineage
from nemotron.artifacts.record import RECORD, read_record, write_record
from nemotron.artifacts.verify import verify
from nemotron.checkpoints.convert import hf_to_megatron
from nemotron.cli.artifacts import app
from nemotron.errors import ArtifactError, DataError, NemotronError
from tests.in_process import nemotron
from tests.unit.checkpoints.families_zoo import CONFIGS, VOCAB, make


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact of each type: hf, megatron, data.jsonl, scores.json."""
    folder = tmp_path_factory.mktemp("world")
    make(folder / "hf", "qwen3-tied", dtype=torch.bfloat16)
    hf_to_megatron(folder / "hf", folder / "megatron")
    rows = [{"prompt": "a", "extra": 1}, {"prompt": "ü"}]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "scores.json").write_text(json.dumps({"results": {"accuracy": 0.5}}))
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "world"))


def test_types(world: Path, tmp_path: Path) -> None:
    assert recognise(world / "hf") == "checkpoint_hf"
    assert recognise(world / "megatron") == "checkpoint_megatron"
    assert recognise(world / "megatron" / "iter_0000000") == "checkpoint_megatron"
    assert recognise(world / "data.jsonl") == "training_jsonl"
    assert recognise(world / "scores.json") == "eval_results"
    for nothing in (tmp_path, tmp_path / "absent", world / "hf" / "config.json"):
        with pytest.raises(ArtifactError):
            recognise(nothing)


def test_a_step_of_nemo_rl_is_its_policy(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "megatron", tmp_path / "step_3" / "policy" / "weights")
    assert recognise(tmp_path / "step_3") == "checkpoint_megatron"
    assert fingerprint(tmp_path / "step_3") == fingerprint(world / "megatron")
    assert fingerprint(world / "megatron" / "iter_0000000") == fingerprint(world / "megatron")


def test_fingerprint_ignores_times_copies_and_records(copy: Path, world: Path) -> None:
    for name in ("hf", "megatron", "data.jsonl", "scores.json"):
        for path in [copy / name, *(copy / name).rglob("*")]:
            os.utime(path, (1, 1))
        assert fingerprint(copy / name) == fingerprint(world / name)
    write_record(copy / "hf", kind="checkpoint_hf", step="x", fingerprint="", inputs=[], details={})
    assert fingerprint(copy / "hf") == fingerprint(world / "hf")


def test_fingerprint_sees_every_byte(copy: Path) -> None:
    changed = {
        "hf": "hf/tokenizer.json",
        "megatron": "megatron/iter_0000000/tokenizer/tokenizer_config.json",
        "data.jsonl": "data.jsonl",
        "scores.json": "scores.json",
    }
    for name, file in changed.items():
        before = fingerprint(copy / name)
        (copy / file).write_bytes((copy / file).read_bytes() + b" ")
        assert fingerprint(copy / name) != before


def test_fingerprint_of_pickled_weights_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not a pickle")
    before = fingerprint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not a pickle either")
    assert fingerprint(tmp_path) != before


def test_fingerprint_sees_a_renamed_and_a_lost_file(copy: Path) -> None:
    before = fingerprint(copy / "megatron")
    tokenizer = copy / "megatron" / "iter_0000000" / "tokenizer"
    (tokenizer / "tokenizer.json").rename(tokenizer / "renamed.json")
    renamed = fingerprint(copy / "megatron")
    (tokenizer / "renamed.json").unlink()
    assert len({before, renamed, fingerprint(copy / "megatron")}) == 3


def test_fingerprint_of_data_ignores_names_and_order_of_shards(tmp_path: Path) -> None:
    for folder, names in (("one", ("a", "b")), ("two", ("b", "a"))):
        (tmp_path / folder / "sub").mkdir(parents=True)
        for name, text in zip(names, ('{"n": 1}\n', '{"n": 2}\n'), strict=True):
            (tmp_path / folder / "sub" / f"{name}.jsonl").write_text(text)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "c.jsonl").write_text('{"n": 1}\n')
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")


@pytest.mark.parametrize("name", CONFIGS)
def test_inspect_knows_every_family(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "hf", name)
    hf_to_megatron(source, tmp_path / "megatron", verify="none")
    here, there = inspect(source).facts, inspect(tmp_path / "megatron").facts
    assert isinstance(here, CheckpointFacts)
    assert isinstance(there, CheckpointFacts)
    assert here.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(source).parameters())
    for fact in ("family", "parameters", "dtypes", "layers", "hidden", "vocabulary", "tied", "shards"):
        assert getattr(here, fact) == getattr(there, fact), fact
    assert here.vocabulary == VOCAB
    for facts in (here, there):
        assert facts.tokenizer is not None
        assert facts.tokenizer.size == VOCAB
        assert facts.tokenizer.chat_template


def test_inspect_data_and_results(world: Path, tmp_path: Path) -> None:
    data, results = inspect(world / "data.jsonl").facts, inspect(world / "scores.json").facts
    assert isinstance(data, DataFacts)
    assert (data.rows, data.files, data.fields) == (2, 1, ("prompt", "extra"))
    assert isinstance(results, ResultFacts)
    assert results.metrics == {"accuracy": 0.5}
    (tmp_path / "bad.jsonl").write_text("\n[1]\n")
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        inspect(tmp_path / "bad.jsonl")


def test_the_record_travels_and_is_compared(copy: Path) -> None:
    for name, kind in (("hf", "checkpoint_hf"), ("megatron", "checkpoint_megatron")):
        content = fingerprint(copy / name)
        made_from = {"type": "checkpoint_hf", "path": "a/b", "fingerprint": "sha256:0"}
        write_record(
            copy / name, kind=kind, step="convert/x", fingerprint=content, inputs=[made_from], details={"n": 1}
        )
        found = inspect(copy / name).record
        assert found is not None
        assert (found["step"], found["inputs"], found["n"]) == ("convert/x", [made_from], 1)
        assert verify(copy / name).recorded is True
    assert read_record(copy / "megatron" / "iter_0000000") is not None
    shutil.copytree(copy / "megatron", copy / "step_3" / "policy" / "weights")
    assert verify(copy / "step_3").recorded is True
    (copy / "hf" / "generation_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="changed after it was written"):
        verify(copy / "hf")


def test_verify_whole_artifacts(world: Path) -> None:
    for name in ("hf", "megatron", "data.jsonl", "scores.json"):
        done = verify(world / name)
        assert done.fingerprint == fingerprint(world / name)
        assert done.recorded is None
        assert done.checks


def test_verify_finds_a_flipped_bit_in_the_last_tensor(copy: Path) -> None:
    data = copy / "megatron" / "iter_0000000" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    norm = load_file(copy / "hf" / "model.safetensors")["model.layers.3.self_attn.k_norm.weight"]
    at = content.index(norm.view(torch.uint8).numpy().tobytes())
    content[at] ^= 128
    data.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum"):
        verify(copy / "megatron")


def test_verify_finds_weights_that_do_not_fit(copy: Path) -> None:
    file = copy / "hf" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file)
    with pytest.raises(ArtifactError, match=r"`model\.norm\.weight` is missing"):
        verify(copy / "hf")


def test_verify_finds_a_broken_row(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match="line 2"):
        verify(tmp_path / "d.jsonl")
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        verify(tmp_path / "d.jsonl")


def test_commands_print_data_on_stdout(world: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["inspect", str(world / "megatron"), "--json"])
    assert shown.exit_code == 0
    found = json.loads(shown.stdout)
    assert (found["type"], found["family"], found["tied"]) == ("checkpoint_megatron", "qwen3", True)
    table = runner.invoke(app, ["inspect", str(world / "hf")]).stdout
    assert f"vocabulary   {VOCAB} rows, tied to the output layer" in table
    checked = json.loads(runner.invoke(app, ["verify", str(world / "hf"), "--json"]).stdout)
    assert checked["fingerprint"] == fingerprint(world / "hf")
    assert "fingerprint  sha256:" in runner.invoke(app, ["verify", str(world / "data.jsonl")]).stdout
    failed = runner.invoke(app, ["verify", str(world / "absent")])
    assert isinstance(failed.exception, NemotronError)


def test_inspect_needs_no_torch(world: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from nemotron.artifacts.inspect import inspect
for name in ("hf", "megatron", "data.jsonl"):
    inspect(Path({str(world)!r}) / name)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_record_that_cannot_be_read_is_no_record(copy: Path) -> None:
    (copy / "hf" / RECORD).write_text("{")
    assert inspect(copy / "hf").record is None


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The folder that `data_prep/rl_prep` made, outside of its run."""
    rows = "".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(60))
    (tmp_path / "rows.jsonl").write_text(rows)
    words = (f"blend_path={tmp_path / 'rows.jsonl'}", f"output_dir={tmp_path / 'o'}")
    done = nemotron("steps", "run", "data_prep/rl_prep", *words, cwd=tmp_path, bare=True)
    assert done.code == 0, done.stderr
    return tmp_path / "o"


def test_prepared_data_are_known_by_folder_and_by_manifest(prepared: Path) -> None:
    for path in (prepared, prepared / "manifest.json"):
        assert recognise(path) == "prepared_data"
        found = inspect(path)
        assert isinstance(found.facts, PreparedFacts)
        assert found.facts.rows == sum(found.facts.splits.values()) == 60
        assert found.record is not None
        assert found.record["step"] == "data_prep/rl_prep"
        whole = verify(path)
        assert (whole.type, whole.recorded) == ("prepared_data", True)
        link = lineage(path)
        assert link.made is not None
        assert link.made.run == found.record["run"]
        assert [one.path for one in link.inputs] == [str(prepared.parent / "rows.jsonl")]


@pytest.mark.parametrize("damage", ["gone", "longer", "other", "manifest"])
def test_damaged_prepared_data_are_refused(prepared: Path, damage: str) -> None:
    shard = next(prepared.glob("train-*.jsonl"))
    if damage == "gone":
        shard.unlink()
    elif damage == "longer":
        shard.write_bytes(shard.read_bytes() + b'{"prompt": "more"}\n')
    elif damage == "other":
        shard.write_bytes(shard.read_bytes().replace(b"question", b"Question", 1))
    else:
        named = json.loads((prepared / "manifest.json").read_text())
        named["splits"]["train"]["shards"][0]["rows"] += 1
        (prepared / "manifest.json").write_text(json.dumps(named))
    for path in (prepared, prepared / "manifest.json"):
        with pytest.raises(NemotronError):
            verify(path)


def test_a_model_in_the_folder_of_prepared_data_is_not_made_by_their_run(world: Path, prepared: Path) -> None:
    shutil.copytree(world / "hf", prepared / "model")
    assert inspect(prepared / "model").record is None
