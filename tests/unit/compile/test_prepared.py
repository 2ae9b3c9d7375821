"""`data.manifest_path`: prepared data instead of files, and everything that can be wrong with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.jobs.base import Job
from nemotron.compile.rules import prepared
from nemotron.data.manifest import PASS_THROUGH, text_sha256, vocabulary_sha256
from tests.unit.compile.compile_world import Compile, named, row, write_manifest


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [row(f"{name} {i}", world={"intent": "return", "slots": {}}) for i in range(count)]


SPLITS = {
    "train": [rows("first", 70), rows("second", 80)],
    "validation": [rows("third", 9)],
    "heldout": [rows("fourth", 12), rows("fifth", 3)],
}
HELDOUT = "eval.heldout={split: heldout, verifier: tiny_world, max_samples: 10}"


@pytest.fixture
def manifest(world: Path) -> Path:
    return write_manifest(world / "prepared", SPLITS)


def test_its_splits_are_the_rows(compiled: Compile, manifest: Path, world: Path) -> None:
    plan = compiled("default", f"data.manifest_path={manifest}", "policy.model_name=model", HELDOUT)
    assert plan.ok, plan.findings
    assert plan.work is not None
    assert plan.work.steps == 150 // 64
    data = {ref.role: ref for ref in plan.inputs if ref.files}
    assert [(role, ref.path, ref.detail) for role, ref in data.items()] == [
        ("train data", str(manifest), "150 rows in 2 shards of the manifest"),
        ("validation data", str(manifest), "9 rows in 1 shard of the manifest"),
        ("heldout data", str(manifest), "15 rows in 2 shards of the manifest"),
    ]
    assert data["train data"].files == tuple(str(manifest.parent / f"train-0000{i}-of-00002.jsonl") for i in (0, 1))
    assert compiled("default", "data.manifest_path=prepared", "policy.model_name=model").ok


def test_without_validation_only_training_rows_are_read(compiled: Compile, world: Path) -> None:
    manifest = write_manifest(world / "prepared", {"train": SPLITS["train"]})
    off = ("data.validation=null", "grpo.val_period=0", "grpo.val_at_start=false")
    words = (f"data.manifest_path={manifest}", "policy.model_name=model")
    assert compiled("default", *words, *off).ok
    [finding] = named(compiled("default", *words), "manifest-split")
    assert finding.hint == "it has `train`; prepare the data with that split, or set `data.validation=null`"


def test_the_environment_names_it(compiled: Compile, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_PREP_MANIFEST", str(manifest))
    monkeypatch.setenv("RL_TRAIN_DATA", "own.jsonl")
    plan = compiled("default", "policy.model_name=model", env={"RL_TRAIN_DATA": "own.jsonl"})
    assert plan.ok
    [finding] = named(plan, "data-twice")
    assert (finding.severity, finding.message) == (
        "warning",
        "the environment variable `RL_TRAIN_DATA` is not read: `data.manifest_path` names the rows",
    )


def test_it_wins_over_a_config_but_not_over_the_command_line(compiled: Compile, manifest: Path) -> None:
    found = named(compiled("own.yaml", f"data.manifest_path={manifest}"), "data-twice")
    assert [(f.severity, f.key) for f in found] == [
        ("warning", "data.train.data_path"),
        ("warning", "data.validation.data_path"),
    ]
    plan = compiled("own.yaml", f"data.manifest_path={manifest}", "data.train.data_path=own.jsonl")
    assert [f.key for f in named(plan, "data-twice") if f.severity == "error"] == ["data.train.data_path"]
    assert compiled("own.yaml", "data.manifest_path=null", "data.train.data_path=own.jsonl").ok


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"splits": {"train": {}}}', '{"splits": {"train": {"shards": 3}}}']
)
def test_no_manifest(compiled: Compile, world: Path, content: str | None) -> None:
    path = world / "manifest.json"
    if content is not None:
        path.write_text(content)
    plan = compiled("own.yaml", f"data.manifest_path={path}")
    assert [f.exit_code for f in named(plan, "manifest-missing")] == [5]
    assert not plan.ok


def test_rows_that_do_not_add_up(compiled: Compile, manifest: Path) -> None:
    value = json.loads(manifest.read_text())
    value["splits"]["train"]["rows"] += 1
    manifest.write_text(json.dumps(value))
    [finding] = named(compiled("own.yaml", f"data.manifest_path={manifest}"), "manifest-missing")
    assert finding.message == "the shards of `train` have 150 rows, the manifest says 151"


def test_shards_that_are_not_what_was_made(compiled: Compile, manifest: Path) -> None:
    folder = manifest.parent
    (folder / "train-00000-of-00002.jsonl").unlink()
    longer = folder / "train-00001-of-00002.jsonl"
    longer.write_bytes(longer.read_bytes() + b"\n")
    changed = folder / "validation-00000-of-00001.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b"third 1", b"THIRD 1"))
    found = [f.message for f in named(compiled("own.yaml", f"data.manifest_path={manifest}"), "manifest-shard")]
    assert len(found) == 3
    assert "cannot be read: no such file" in found[0]
    assert "bytes instead of" in found[1]
    assert "has another SHA-256" in found[2]


def test_a_split_that_is_not_there(compiled: Compile, manifest: Path) -> None:
    words = (f"data.manifest_path={manifest}", HELDOUT.replace("split: heldout", "split: heldot"))
    [finding] = named(compiled("own.yaml", *words), "manifest-split")
    assert (finding.key, finding.hint) == (
        "eval.heldout.split",
        "did you mean `heldout`?; prepare the data with that split",
    )
    [finding] = named(compiled("own.yaml", HELDOUT), "manifest-missing")
    assert finding.message == "`eval.heldout.split` names a split of a manifest, and `data.manifest_path` is not set"


def test_heldout_prompts_need_a_place(compiled: Compile) -> None:
    plan = compiled("own.yaml", "eval.heldout={verifier: tiny_world, max_samples: 10}")
    assert [f.key for f in named(plan, "no-data-path")] == ["eval.heldout"]


def test_the_kind_of_rows(compiled: Compile, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [{"prompt": f"p {i}", "chosen": "a", "rejected": "b"} for i in range(90)]
    paired = write_manifest(world / "pairs", {"train": [pairs], "validation": [pairs[:1]]}, kind="preference")
    plan = compiled("own.yaml", f"data.manifest_path={paired}")
    assert plan.ok
    assert [f.severity for f in named(plan, "manifest-kind")] == ["warning"]
    monkeypatch.setattr(Job, "row_kind", "preference")
    assert named(compiled("own.yaml", f"data.manifest_path={paired}"), "manifest-kind") == []
    plain = write_manifest(world / "prompts", SPLITS)
    [finding] = named(compiled("own.yaml", f"data.manifest_path={plain}"), "manifest-kind")
    assert (finding.severity, finding.exit_code) == ("error", 5)


def test_rows_of_shards_are_looked_at(compiled: Compile, world: Path) -> None:
    broken = [*rows("first", 70), {"note": 1}]
    manifest = write_manifest(
        world / "prepared", {"train": [rows("zero", 3), broken], "validation": [rows("first", 1)]}
    )
    plan = compiled("own.yaml", f"data.manifest_path={manifest}")
    [finding] = named(plan, "data-row")
    assert str(finding.origin) == f"{manifest.parent / 'train-00001-of-00002.jsonl'}:71"
    [finding] = named(plan, "split-overlap")
    assert finding.message == "1 of 1 validation prompts are also trained on"


def tokenised(manifest: Path, **tokens: Any) -> None:
    """Say that the training split has token ids, made as ``tokens`` tells."""
    value = json.loads(manifest.read_text())
    for split in ("train", "validation"):
        (manifest.parent / f"{split}.safetensors").write_bytes(b"ids")
        digest = hashlib.sha256(b"ids").hexdigest()
        shard = {"path": f"{split}.safetensors", "rows": 1, "bytes": 3, "sha256": digest}
        value["splits"][split] |= {"token_shards": [shard], "tokens": tokens}
    manifest.write_text(json.dumps(value))


def test_token_ids_are_those_of_the_policy(
    compiled: Compile, world: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: str, path: object = manifest) -> list[str]:
        plan = compiled("own.yaml", f"data.manifest_path={path}", "data.use_tokens=true", *words)
        return [f.message for f in plan.findings if f.name in ("data-tokens", "manifest-shard")]

    assert said() == [
        "this step reads text, not token ids",
        *[f"the manifest has no token ids of the split `{name}`" for name in ("train", "validation")],
    ]
    monkeypatch.setattr(prepared, "embedded_reads", lambda model, section, key: True)
    assert said(path="null")[0] == "`data.use_tokens` needs prepared data"
    (world / "model" / "chat_template.jinja").write_text("{{ messages }}")
    good = {
        "vocabulary": vocabulary_sha256({f"t{i}": i for i in range(256)}),
        "chat_template": text_sha256("{{ messages }}"),
    }
    tokenised(manifest, **good)
    assert said() == []
    tokenised(manifest, **good | {"chat_template": text_sha256(PASS_THROUGH)})
    assert said()[0] == "the data were tokenised with another chat template than the policy's (split `train`)"
    assert said("policy.tokenizer.chat_template=null") == []
    tokenised(manifest, **good | {"vocabulary": vocabulary_sha256({"a": 0})})
    assert said()[0] == "the tokenizer of the data gives other ids to tokens than the policy's (split `train`)"
    tokenised(manifest, **good)
    (manifest.parent / "train.safetensors").unlink()
    assert len(said()) == 1
