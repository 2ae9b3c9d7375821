"""Hub data sets from a mirror on the loopback interface, through huggingface_hub itself; placeholders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nemotron.data.prep.hub import parse_hub_path
from nemotron.errors import DataError
from tests.unit.data.prep_data import lines_of, prompts, rejects_of, rows_of, run, write_rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Mirror:
    """Data sets that the mirror serves: repository -> file name -> content."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


def handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            mirror.asked.append(self.path)
            path = self.path.split("?")[0]
            for repo, files in mirror.repos.items():
                if path.startswith(f"/api/datasets/{repo}"):
                    siblings = [{"rfilename": name} for name in files]
                    value = {
                        "id": repo,
                        "sha": COMMIT,
                        "siblings": siblings,
                        "private": False,
                        "tags": [],
                        "downloads": 0,
                    }
                    return self._send(json.dumps(value).encode(), body=body)
                prefix = f"/datasets/{repo}/resolve/{COMMIT}/"
                if path.startswith(prefix) and path.removeprefix(prefix) in files:
                    return self._send(files[path.removeprefix(prefix)], body=body)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def _send(self, content: bytes, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    constants = pytest.importorskip("huggingface_hub.constants")
    api = pytest.importorskip("huggingface_hub.hf_api")
    found = Mirror()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for name, value in (
        ("ENDPOINT", endpoint),
        ("HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(api.constants, "ENDPOINT", endpoint)
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_files_of_a_pinned_commit(mirror: Mirror, tmp_path: Path) -> None:
    exact = b'{"prompt": "p", "n": 1.10}\n'
    mirror.repos["org/set"] = {
        "README.md": b"hello",
        "data/train-00000.jsonl": jsonl(prompts(5)),
        "data/test.jsonl": exact,
    }
    result = run(tmp_path / "out", f"hf://org/set@{COMMIT}")
    assert len(rows_of(result, "train")) == 5
    assert lines_of(result, "test") == [exact.strip()]
    assert {source["revision"] for source in result.manifest["sources"]} == {COMMIT}
    assert result.manifest["sources"][0]["path"] == f"hf://org/set@{COMMIT}/data/test.jsonl"


def test_splits_and_subsets_of_the_card(mirror: Mirror, tmp_path: Path) -> None:
    card = """---
configs:
- config_name: easy
  data_files: [{split: train, path: "easy/*.jsonl"}]
- config_name: hard
  data_files: [{split: train, path: ["hard/a.jsonl"]}, {split: val, path: "hard/b.jsonl"}]
---
text"""
    mirror.repos["org/set"] = {
        "README.md": card.encode(),
        "easy/x.jsonl": jsonl(prompts(1)),
        "hard/a.jsonl": jsonl(prompts(2, start=10)),
        "hard/b.jsonl": jsonl(prompts(3, start=20)),
    }
    result = run(tmp_path / "a", {"datasets": [{"path": "hf://org/set", "subset": "hard"}]})
    assert {name: split["rows"] for name, split in result.manifest["splits"].items()} == {"train": 2, "validation": 3}
    one = run(tmp_path / "b", {"datasets": [{"path": "hf://org/set", "subset": "hard", "split": "validation"}]})
    assert len(rows_of(one, "validation")) == 3
    with pytest.raises(DataError, match="several subsets"):
        run(tmp_path / "c", "hf://org/set")
    with pytest.raises(DataError, match="no subset `hrad`"):
        run(tmp_path / "d", {"datasets": [{"path": "hf://org/set", "subset": "hrad"}]})


def test_offline_from_the_cache(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.repos["org/set"] = {"train.jsonl": jsonl(prompts(5))}
    online = run(tmp_path / "a", f"hf://org/set@{COMMIT}")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(mirror.asked)
    offline = run(tmp_path / "b", f"hf://org/set@{COMMIT}")
    assert len(mirror.asked) == asked
    assert lines_of(online) == lines_of(offline)
    with pytest.raises(DataError, match="cannot get `hf://org/other`"):
        run(tmp_path / "c", "hf://org/other")


def test_nothing_of_that_name(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot get `hf://org/none`"):
        run(tmp_path / "out", "hf://org/none")
    mirror.repos["org/csv"] = {"train.csv": b"a,b"}
    with pytest.raises(DataError, match="has no data files"):
        run(tmp_path / "out", "hf://org/csv")


@pytest.mark.parametrize(
    ("path", "revision", "expected"),
    [
        ("hf://org/name", None, ("org/name", None, "")),
        ("hf://org/name@v1", None, ("org/name", "v1", "")),
        ("hf://datasets/org/name@v1/data/train", None, ("org/name", "v1", "data/train")),
        ("hf://org/name", "main", ("org/name", "main", "")),
    ],
)
def test_hub_paths(path: str, revision: str | None, expected: tuple[str, str | None, str]) -> None:
    assert parse_hub_path(path, revision) == expected


def source(path: str, **more: Any) -> dict[str, Any]:
    values = {
        "revision": None,
        "split": "train",
        "question": ["prompt", 0, "content"],
        "answer": ["rm", "gt"],
        "unwrap": False,
    }
    return {"path": path, **values, **more}


def original(i: int) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": f"Intro.\n\nWhat is {i}+{i}?\n\nOutro."}], "rm": {"gt": "034"}}


def test_placeholders_are_filled_from_a_pinned_data_set(mirror: Mirror, tmp_path: Path) -> None:
    mirror.repos["org/math"] = {"data/train.jsonl": jsonl([original(i) for i in range(50)])}
    template = b'{"prefix": "Solve: ", "suffix": " Box it.\\n"}'
    rows: list[Any] = [
        b'{"dataset": "wrapped", "p": 0.50, "_hf_placeholder": {"row": 7, "question_template": ' + template + b"}}",
        {
            "dataset": "plain",
            "_hf_placeholder": {"row": 3, "question_template": "Q: {question}"},
            "agent_ref": {"name": "x"},
        },
        {"dataset": "plain", "_hf_placeholder": {"row": -1}},
        *prompts(3),
    ]
    known = {"wrapped": source("hf://org/math", unwrap=True), "plain": source("hf://org/math", revision=COMMIT)}
    result = run(
        tmp_path / "out",
        write_rows(tmp_path / "in.jsonl", rows),
        placeholder_sources=known,
        block_bytes=64,
        split={"shares": {}},
    )
    found = {row.get("dataset"): row for row in rows_of(result)}
    text = "Solve: What is 7+7? Box it."
    assert found["wrapped"]["responses_create_params"] == {"input": [{"role": "user", "content": text}]}
    assert (found["wrapped"]["question"], found["wrapped"]["expected_answer"]) == (text, "034")
    assert found["plain"]["question"] == original(3)["prompt"][0]["content"]
    assert found["plain"]["agent_ref"] == {"name": "x"}
    assert any(b'"p":0.50' in line for line in lines_of(result))
    assert len(rows_of(result)) == 5
    assert [(row["line"], row["reason"]) for row in rejects_of(result)] == [(3, "placeholder")]
    assert result.manifest["placeholders"] == {"plain": COMMIT, "wrapped": COMMIT}
    [warning] = [text for text in result.warnings if "placeholders" in text]
    assert f"set `placeholder_sources.wrapped.revision={COMMIT}`" in warning


def test_an_unreachable_source_says_what_it_would_cost(mirror: Mirror, tmp_path: Path) -> None:
    rows = [{"dataset": key, "_hf_placeholder": {"row": i}} for i, key in enumerate(["gone"] * 7 + ["unknown"] * 2)]
    path = write_rows(tmp_path / "in.jsonl", [*rows, *prompts(3)])
    with pytest.raises(DataError) as caught:
        run(tmp_path / "out", path, placeholder_sources={"gone": source("hf://org/gone")})
    message = caught.value.message
    assert message.startswith("9 placeholder rows cannot be resolved")
    assert "`gone`: cannot get `hf://org/gone`" in message
    assert f"it would cost 7 rows (`{path}:1`" in message
    assert "has no `unknown`; it would cost 2 rows" in message
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_row_number_beyond_the_source(mirror: Mirror, tmp_path: Path) -> None:
    mirror.repos["org/math"] = {"train.jsonl": jsonl([original(0)])}
    path = write_rows(tmp_path / "in.jsonl", [{"dataset": "math", "_hf_placeholder": {"row": 1}}])
    with pytest.raises(DataError, match="has 1 rows, and row 1 is asked for"):
        run(tmp_path / "out", path, placeholder_sources={"math": source("hf://org/math")})


def test_placeholders_stay_out_when_they_are_not_resolved(tmp_path: Path) -> None:
    rows = [{"dataset": "math", "_hf_placeholder": {"row": 1}}, *prompts(3)]
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows), resolve_hf_placeholders=False)
    assert [row["reason"] for row in rejects_of(result)] == ["placeholder"]
