"""Shards, order, splits, weights, limits and duplicates of the prepared data."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nemotron.data.manifest import resolve_manifest, split_paths
from nemotron.data.rows import read_prompts
from nemotron.errors import DataError, OutputError
from tests.unit.data.prep_data import files_of, lines_of, prompts, rejects_of, rows_of, run, write_rows


def test_four_shards_are_four_in_the_manifest(tmp_path: Path) -> None:
    rows = prompts(100)
    result = run(
        tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows), num_shards_per_split=4, split={"shares": {}}
    )
    shards = result.manifest["splits"]["train"]["shards"]
    assert [shard["rows"] for shard in shards] == [25, 25, 25, 25]
    assert sorted(row["id"] for row in rows_of(result)) == list(range(100))
    assert [row["id"] for row in rows_of(result)] != list(range(100))
    assert len(resolve_manifest(result.path)["train"]) == 4


def test_never_more_shards_than_rows(tmp_path: Path) -> None:
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", prompts(2)), num_shards_per_split=4)
    splits = result.manifest["splits"]
    assert {name: [shard["rows"] for shard in split["shards"]] for name, split in splits.items()} == {
        "train": [1, 1],
        "validation": [],
    }


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_same_bytes_whatever_the_processes_and_the_order(tmp_path: Path, compression: str) -> None:
    parts = [write_rows(tmp_path / f"p{i}.jsonl", prompts(300, start=300 * i)) for i in range(3)]
    outputs = []
    for name, order, processes in (("a", [0, 1, 2], 1), ("b", [2, 0, 1], 2), ("c", [1, 2, 0], 3)):
        blend = {"datasets": [{"path": str(parts[i])} for i in order]}
        changes: dict[str, Any] = {"num_processes": processes, "compression": compression, "num_shards_per_split": 3}
        run(tmp_path / name, blend, block_bytes=4096, split={"shares": {"validation": 0.1}}, **changes)
        outputs.append(files_of(tmp_path / name))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == 3 + 3 + 2


def test_the_seed_decides_order_and_splits(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(200))
    orders = [[row["id"] for row in rows_of(run(tmp_path / f"o{seed}", source, seed=seed))] for seed in (1, 2)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_a_prompt_is_in_one_split_whatever_surrounds_it(tmp_path: Path) -> None:
    rows = [{"prompt": f"Prompt {i % 50}", "answer": str(i)} for i in range(500)]
    rows += [{"messages": [{"role": "user", "content": f"prompt  {i}"}]} for i in range(50)]
    shares = {"validation": 0.2, "test": 0.2}
    forward = run(tmp_path / "a", write_rows(tmp_path / "1.jsonl", rows), split={"mode": "hash", "shares": shares})
    backward = run(
        tmp_path / "b", write_rows(tmp_path / "2.jsonl", rows[::-1]), split={"mode": "hash", "shares": shares}
    )
    for split in ("train", "validation", "test"):
        assert lines_of(forward, split) == lines_of(backward, split)
    owners: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for row in rows_of(forward, split):
            text = row.get("prompt") or row["messages"][0]["content"]
            owners.setdefault(text.lower().replace(" ", ""), set()).add(split)
    assert all(len(splits) == 1 for splits in owners.values())
    assert {split for splits in owners.values() for split in splits} == {"train", "validation", "test"}
    assert forward.manifest["duplicates"]["prompts_in_several_splits"] == 0


def test_a_folder_keeps_its_splits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "train.jsonl", prompts(10))
    write_rows(tmp_path / "in" / "validation.jsonl", prompts(4, start=100))
    result = run(tmp_path / "out", tmp_path / "in")
    assert {row["id"] for row in rows_of(result, "train")} == set(range(10))
    assert {row["id"] for row in rows_of(result, "validation")} == set(range(100, 104))


def test_given_splits_that_share_prompts(tmp_path: Path) -> None:
    blend = {
        "train": [str(write_rows(tmp_path / "a.jsonl", prompts(10)))],
        "test": [str(write_rows(tmp_path / "b.jsonl", prompts(10, start=8)))],
    }
    result = run(tmp_path / "out", blend)
    assert result.manifest["duplicates"]["prompts_in_several_splits"] == 2
    assert "2 prompts are in more than one" in result.warnings[0]
    with pytest.raises(DataError, match="2 prompts"):
        run(tmp_path / "strict", blend, split={"on_overlap": "error"})
    assert not (tmp_path / "strict" / "manifest.json").exists()


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 40), (0.25, 10), (0.5125, 21), (2.0, 80), (2.5, 100)])
def test_a_weight_is_an_exact_number_of_rows(tmp_path: Path, weight: float, expected: int) -> None:
    blend = {
        "datasets": [
            {"name": "weighted", "path": str(write_rows(tmp_path / "a.jsonl", prompts(40))), "weight": weight},
            {"path": str(write_rows(tmp_path / "b.jsonl", prompts(30, start=100)))},
        ]
    }
    result = run(tmp_path / "out", blend, split={"shares": {}}, num_shards_per_split=2)
    counts = Counter(row["id"] for row in rows_of(result))
    mine = {i: count for i, count in counts.items() if i < 100}
    assert sum(mine.values()) == expected
    assert max(mine.values()) - min(mine.get(i, 0) for i in range(40)) <= 1
    assert all(counts[i] == 1 for i in range(100, 130))


def test_copies_of_a_row_do_not_stand_side_by_side(tmp_path: Path) -> None:
    blend = {"datasets": [{"path": str(write_rows(tmp_path / "a.jsonl", prompts(400))), "weight": 2}]}
    ids = [row["id"] for row in rows_of(run(tmp_path / "out", blend, split={"shares": {}}))]
    assert sum(a == b for a, b in pairwise(ids)) < 10


def test_shares_of_max_rows(tmp_path: Path) -> None:
    paths = [str(write_rows(tmp_path / f"{i}.jsonl", prompts(40, start=100 * i))) for i in range(2)]
    blend = {"train": [0.3, paths[0], 0.7, paths[1]]}
    ids = [row["id"] for row in rows_of(run(tmp_path / "out", blend, weights="shares", max_rows=100))]
    assert Counter(i // 100 for i in ids) == {0: 30, 1: 70}


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("weights", ["copies", "shares"])
def test_a_sample_may_leave_a_split_without_rows(tmp_path: Path, rows: int, weights: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(200))
    sizes = {"max_rows": rows, "weights": weights, "split": {"mode": "hash", "shares": {"validation": 0.05}}}
    result = run(tmp_path / "out", source, **sizes)
    assert sum(split["rows"] for split in result.manifest["splits"].values()) == rows == len(rows_of(result))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x\0"])
def test_a_split_is_called_what_a_file_may_be_called(tmp_path: Path, name: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(20))
    with pytest.raises(DataError, match="is no name for a split"):
        run(tmp_path / "below" / "out", source, split={"mode": "hash", "shares": {name: 0.5}})
    assert not list(tmp_path.rglob("*-of-*"))


def test_max_rows_is_a_global_random_sample(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(1000))
    result = run(
        tmp_path / "out", source, sample=5, max_rows=100, num_shards_per_split=4, split={"shares": {"test": 0.2}}
    )
    ids = [row["id"] for row in rows_of(result)]
    assert len(ids) == len(set(ids)) == 100
    assert 300 < sum(ids) / len(ids) < 700
    assert result.manifest["splits"]["test"]["rows"] == pytest.approx(20, abs=4)


def test_duplicates_are_counted_and_removed_when_asked(tmp_path: Path) -> None:
    rows = [*prompts(5), *prompts(3), {"prompt": "question  NUMBER 1?"}, {"prompt": "Question number 1?", "id": 9}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    kept = run(tmp_path / "a", source)
    assert kept.manifest["duplicates"] == {
        "exact": 3,
        "removed": 0,
        "near": 2,
        "prompts": 5,
        "prompts_in_several_splits": 0,
    }
    removed = run(tmp_path / "b", source, remove_duplicates=True, on_reject="error")
    assert len(lines_of(removed)) == 7
    assert [(row["line"], row["reason"]) for row in rejects_of(removed)] == [
        (6, "duplicate"),
        (7, "duplicate"),
        (8, "duplicate"),
    ]
    assert removed.manifest["sources"][0]["rows_rejected"] == 3


def test_compressed_and_columnar_inputs_read_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import zstandard
    from pyarrow import parquet

    rows = prompts(50)
    plain = write_rows(tmp_path / "a.jsonl", rows).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    frames = [zstandard.ZstdCompressor().compress(part) for part in (plain[:700], plain[700:])]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    outputs = [rows_of(run(tmp_path / f"out-{p.name}", p, block_bytes=512)) for p in sorted(tmp_path.glob("?.*"))]
    assert len(outputs) == 4
    for output in outputs:
        assert sorted(output, key=lambda row: row["id"]) == rows


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_that_ends_early_is_an_error(tmp_path: Path, suffix: str) -> None:
    import zstandard

    plain = write_rows(tmp_path / "a.jsonl", prompts(500)).read_bytes()
    packed = gzip.compress(plain) if suffix.endswith("gz") else zstandard.ZstdCompressor().compress(plain)
    source = tmp_path / f"b{suffix}"
    source.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="damaged or ends early"):
        run(tmp_path / "out", source)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_globs_and_blend_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "x1.jsonl", prompts(3))
    write_rows(tmp_path / "x2.jsonl", prompts(3, start=3))
    assert len(rows_of(run(tmp_path / "a", tmp_path / "x*.jsonl"))) == 6
    (tmp_path / "blend.yaml").write_text("datasets:\n- {path: x1.jsonl, name: one}\n")
    result = run(tmp_path / "b", tmp_path / "blend.yaml")
    assert [source["dataset"] for source in result.manifest["sources"]] == ["one"]


def test_too_many_rejects_stop_before_a_manifest(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*prompts(9), b"broken"])
    with pytest.raises(
        DataError, match=r"1 of 10 rows are rejected \(1 not-json\), more than `max_reject_share`"
    ) as caught:
        run(tmp_path / "a", source, max_reject_share=0.05)
    assert str(caught.value.origin).endswith("in.jsonl:10")
    with pytest.raises(DataError, match="`on_reject` is `error`"):
        run(tmp_path / "b", source, on_reject="error")
    assert json.loads((tmp_path / "b" / "rejects.jsonl").read_text())["row"] == "broken"
    assert not (tmp_path / "b" / "manifest.json").exists()
    assert run(tmp_path / "c", write_rows(tmp_path / "ok.jsonl", [*prompts(1), b""]), on_reject="error").fresh


def test_output_that_is_there_is_left_alone(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(9))
    assert run(tmp_path / "out", source).fresh
    before = files_of(tmp_path / "out")
    assert not run(tmp_path / "out", source).fresh
    with pytest.raises(OutputError, match="holds another data set"):
        run(tmp_path / "out", source, seed=7)
    assert files_of(tmp_path / "out") == before
    assert run(tmp_path / "out", source, seed=7, force=True, num_shards_per_split=2).fresh
    assert run(tmp_path / "out", source, force=True).fresh
    assert files_of(tmp_path / "out") == before


def test_a_damaged_output_is_made_again(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(9))
    result = run(tmp_path / "out", source)
    before = files_of(tmp_path / "out")
    shard = result.path.parent / result.manifest["splits"]["train"]["shards"][0]["path"]
    shard.write_bytes(b"")
    with pytest.raises(DataError, match="was changed"):
        resolve_manifest(result.path)
    assert run(tmp_path / "out", source).fresh
    assert files_of(tmp_path / "out") == before


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", prompts(30))
    result = run(
        tmp_path / "out", source, compression="zstd", num_shards_per_split=2, split={"shares": {"validation": 0.3}}
    )
    paths = split_paths(result.path.parent, "val")
    assert sum(len(list(read_prompts(path))) for path in paths) == result.manifest["splits"]["validation"]["rows"]
    with pytest.raises(DataError, match="no rows of the split `tets`"):
        split_paths(result.path, "tets")
    paths[0].write_bytes(paths[0].read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="another SHA-256"):
        resolve_manifest(result.path)


@pytest.mark.parametrize("where", ["../outside.jsonl", "{absolute}", "sub/../../outside.jsonl"])
def test_shards_lie_in_the_folder_of_their_manifest(tmp_path: Path, where: str) -> None:
    (tmp_path / "data").mkdir()
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(b"{}\n")
    digest = hashlib.sha256(b"{}\n").hexdigest()
    shard = {"path": where.format(absolute=outside), "rows": 1, "bytes": 3, "sha256": digest}
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(json.dumps({"splits": {"train": {"rows": 1, "shards": [shard]}}}))
    with pytest.raises(DataError, match="outside of the manifest's folder"):
        split_paths(manifest, "train")
