"""Whatever the lines are: kept + rejected = read, per file, and what is kept keeps its bytes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nemotron.data.prep.rawjson import members, renamed, rewritten
from tests.unit.data.prep_data import lines_of, rejects_of, run

MAX_ROW = 2048

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
foreign = st.dictionaries(text.map(lambda name: f"x{name}"), value, max_size=4)
words = text.filter(lambda word: word.strip() != "")


def as_line(row: Any, *, ascii_only: bool) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_only).encode()


def row_of(ours: dict[str, Any]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda more, plain: as_line({**more, **ours}, ascii_only=plain), foreign, st.booleans())


good = st.one_of(
    words.flatmap(lambda w: row_of({"prompt": w})),
    words.flatmap(lambda w: row_of({"messages": [{"role": "user", "content": w}]})),
    words.flatmap(lambda w: row_of({"prompt": w, "chosen": "yes" + w, "rejected": "no"})),
    words.flatmap(lambda w: row_of({"question": w, "expected_answer": "34"})),
    words.flatmap(lambda w: row_of({"responses_create_params": {"input": w}, "agent_ref": {"name": "a"}})),
).filter(lambda line: len(line) <= MAX_ROW)
bad = st.one_of(
    words.map(lambda w: as_line({"prompt": w}, ascii_only=True)[:-1]),
    st.sampled_from([b"[1, 2]", b"3", b'"text"', b"null", b"NaN", b'{"prompt": NaN}', b"{}", b'{"x": 1}', b"not json"]),
    st.sampled_from(
        [b'{"prompt": 5}', b'{"prompt": ""}', b'{"prompt": "  "}', b'{"messages": {}}', b'{"messages": []}']
    ),
    st.just(b'{"prompt": "\xff\xfe"}'),
    st.just(b'{"prompt": "a", "chosen": "same", "rejected": "same"}'),
    st.just(b'{"prompt": "' + b"h" * MAX_ROW + b'"}'),
    st.sampled_from([b'{"prompt": "\\ud800"}', b'{"a": 1}{"b": 2}', b"\x00\x01"]),
)
blank = st.sampled_from([b"", b"   ", b"\t", b"\r"])
line = st.one_of(good, good, bad, blank)
file_lines = st.lists(line, max_size=25).flatmap(lambda lines: st.permutations(lines + lines[:3]))


MANY = [False, pytest.param(True, marks=pytest.mark.full)]
"""Whether to try many examples."""


def is_good(line: bytes) -> bool:
    """An independent judgement, by the standard library, of lines that the strategies above can make."""
    line = line.removesuffix(b"\r")
    try:
        row = json.loads(line, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return False
    if not isinstance(row, dict) or len(line) > MAX_ROW or b'"\\ud800"' in line:
        return False
    if "chosen" in row:
        return bool(row["chosen"] != row["rejected"])
    source = row.get("prompt", row.get("messages", row.get("question", row.get("responses_create_params"))))
    return bool(source and (not isinstance(source, str) or source.strip())) and not isinstance(source, int)


@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_nothing_is_lost(many: bool) -> None:
    @settings(
        max_examples=50 if many else 15,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        files=st.lists(file_lines, min_size=1, max_size=3),
        ended=st.booleans(),
        block_bytes=st.sampled_from([16, 100, 1000, 1 << 20]),
        shards=st.integers(1, 4),
        dedup=st.booleans(),
    )
    @example(files=[[b'{"prompt": "a"}', b"", b'{"prompt": "a"}']], ended=False, block_bytes=16, shards=4, dedup=True)
    # Equal prompts, one in a block beside a pair and one alone.
    @example(
        files=[[b'{"prompt": "a"}', b'{"prompt": "b", "chosen": "yes", "rejected": "no"}', b'{"prompt": "a"}']],
        ended=False,
        block_bytes=60,
        shards=1,
        dedup=False,
    )
    def holds(files: list[list[bytes]], ended: bool, block_bytes: int, shards: int, dedup: bool) -> None:
        if not any(is_good(line) for lines in files for line in lines):
            files = [*files, [b'{"prompt": "at least one"}']]
        with TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "in").mkdir()
            for i, lines in enumerate(files):
                (folder / "in" / f"part{i}.jsonl").write_bytes(b"\n".join(lines) + (b"\n" if ended else b""))
            result = run(
                folder / "out",
                folder / "in",
                block_bytes=block_bytes,
                num_shards_per_split=shards,
                remove_duplicates=dedup,
                max_row_bytes=MAX_ROW,
                split={"mode": "hash", "shares": {"validation": 0.3}},
            )
            rejects = rejects_of(result)
            written = Counter(lines_of(result))
        sources = result.manifest["sources"]
        for source, lines in zip(sources, files, strict=True):
            # The last line counts only if there is something in it, or if a line end follows.
            content = b"\n".join(lines) + (b"\n" if ended else b"")
            real = content.split(b"\n")[: None if content and content[-1:] != b"\n" else -1]
            mine = [row for row in rejects if row["file"] == source["path"]]
            assert source["rows_kept"] + source["rows_rejected"] == source["rows_read"] == len(real)
            assert source["rows_rejected"] == len(mine) == sum(source["rejected"].values())
            faulty = {i for i, line in enumerate(real, 1) if not is_good(line)}
            assert {row["line"] for row in mine if row["reason"] != "duplicate"} == faulty
            assert all(row["line"] not in faulty for row in mine if row["reason"] == "duplicate")
        expected = Counter(line.removesuffix(b"\r") for lines in files for line in lines if is_good(line))
        assert written == (Counter(set(expected)) if dedup else expected)
        assert result.manifest["rejects"]["total"] == len(rejects)
        assert result.manifest["duplicates"]["exact"] == sum(expected.values()) - len(expected)

    holds()


@settings(max_examples=200, deadline=None)
@given(more=foreign, plain=st.booleans(), indent=st.sampled_from([None, 1]))
def test_rewriting_keeps_foreign_bytes(more: dict[str, Any], plain: bool, indent: int | None) -> None:
    row = {**more, "prompt": "p", "last": 1}
    line = json.dumps(row, ensure_ascii=plain, indent=indent).encode()
    written = dict(members(line))
    assert {name: json.loads(text) for name, text in written.items()} == row
    again = dict(members(rewritten(line, {"prompt": "new"}, without=["last"])))
    assert again.pop("prompt") == '"new"'
    assert again == {name: text for name, text in written.items() if name not in ("prompt", "last")}
    assert list(dict(members(renamed(line, {"prompt": "question"})))) == [*more, "question", "last"]


@pytest.mark.parametrize(
    "number", ["1.10", "1e3", "34", '"34"', "123456789012345678901234567890", "-0.0", "1E+2", "9" * 300]
)
def test_numbers_keep_their_spelling(tmp_path: Path, number: str) -> None:
    row = f'{{"context": "q", "response1": "a", "response2": "b", "overall_preference": -1, "n": {number}}}'
    (tmp_path / "in.jsonl").write_text(row + "\n")
    result = run(tmp_path / "out", tmp_path / "in.jsonl")
    [line] = lines_of(result)
    assert dict(members(line))["n"] == number
    assert json.loads(line.replace(number.encode(), b"0"))["chosen"] == "a"
