"""Parts of a small world to compile against: model folders, data files, a laptop and a cluster node."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.base import EMBEDDED_MODULES
from nemotron.compile.plan import Plan
from nemotron.compile.rules.engine import LOGGER_MODULES
from nemotron.errors import Finding
from nemotron.manifest import EngineName
from nemotron.place import Place
from nemotron.steps.rl.nemo_rl.rlhf import step as rlhf

CONFIGS = Path(rlhf.__file__).parent / "config"
MODULES = dict.fromkeys(EMBEDDED_MODULES, True) | dict.fromkeys((*LOGGER_MODULES, "nemo_rl"), False)
LAPTOP = Place(memory_bytes=8 * 2**30, hub_cache=Path("/nonexistent"), modules=MODULES)
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] in ('principle', 'response_1', 'response_2') %}{{ m['role'] }}: {% endif %}"
    "{{ m['content'] }}{% endfor %}"
)
"""A template that knows the roles of a judge."""
CLUSTER = Place(name="dgx", is_here=False, nodes=2, gpus_per_node=8, has_cuda=True)
NODE = replace(LAPTOP, has_cuda=True, modules={**MODULES, "nemo_rl": True})

OWN = """\
defaults: default
grpo:
  max_num_epochs: 5
policy:
  model_name: model
data:
  train:
    data_path: own.jsonl
  validation:
    data_path: val.jsonl
env:
  nemo_gym:
    genrm_model:
      responses_api_models:
        vllm_model:
          model: model
"""


@dataclass(frozen=True)
class Step:
    id: str = "rl/nemo_rl/rlhf"
    view: None = None


def driven(step: TrainingStep, engines: Sequence[EngineName] = ("embedded", "nemo_rl")) -> TrainingStep:
    """The step as a version declares it that drives these engines."""
    return replace(step, engines={name: "module:entry" for name in engines})


def row(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "responses_create_params": {"input": [{"role": "user", "content": text}]},
        "agent_ref": {"type": "responses_api_agents", "name": "genrm_simple_agent"},
        **fields,
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_manifest(
    folder: Path, splits: Mapping[str, Sequence[Sequence[dict[str, Any]]]], kind: str = "prompt"
) -> Path:
    """Shards, and the manifest that names them."""
    value: dict[str, Any] = {"version": 1, "kind": kind, "splits": {}}
    for split, shards in splits.items():
        entries = []
        for i, rows in enumerate(shards):
            path = write_rows(folder / f"{split}-{i:05d}-of-{len(shards):05d}.jsonl", rows)
            size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
            entries.append({"path": path.name, "rows": len(rows), "bytes": size, "sha256": digest})
        value["splits"][split] = {"rows": sum(map(len, shards)), "shards": entries}
    (folder / "manifest.json").write_text(json.dumps(value))
    return folder / "manifest.json"


def write_model(folder: Path, *, vocabulary: int = 256, tokens: int = 256, **config: Any) -> Path:
    """A model folder with real headers and no numbers worth loading."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": vocabulary, "eos_token_id": 1, **shape, **config})
    )
    vocab = {f"t{i}": i for i in range(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    header = json.dumps(
        {"w": {"dtype": "F16", "shape": [vocabulary, 64], "data_offsets": [0, vocabulary * 128]}}
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + vocabulary * 128)
    return folder


@cache
def _made(make: Callable[[Path], object]) -> tuple[tuple[Path, bytes], ...]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        return tuple((path.relative_to(folder), path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def fill(folder: Path, make: Callable[[Path], object]) -> None:
    """Put into ``folder`` the files that ``make`` writes into one, always the same: they are computed once."""
    made = _made(make)
    for parent in sorted({path.parent for path, _ in made}):
        (folder / parent).mkdir(parents=True, exist_ok=True)
    for path, content in made:
        (folder / path).write_bytes(content)


Compile = Callable[..., Plan]
CompileStep = Callable[..., Plan]


def named(plan: Plan, name: str) -> list[Finding]:
    return [finding for finding in plan.findings if finding.name == name]
