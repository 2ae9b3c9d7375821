"""The import rules of docs/architecture.md, checked on the source itself."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "nemotron"

# One layer a package, the highest first: a package imports from those below it alone. docs/architecture.md draws this.
LAYERS = [
    "__main__",
    "cli",
    "api",
    "pipelines",
    "executors",
    "steps",
    "audit",
    "engines",
    "compile",
    "judge.server",
    "rl",
    "gym",
    "rewards",
    "judge",
    "vllm",
    "sandbox",
    "contracts",
    "data.prep",
    "data",
    "reports",
    "artifacts",
    "runs",
    "checkpoints",
    "profiles",
    "config",
    "processes",
    "outcome",
    "out_of_memory",
    "job",
    "place",
    "promises",
    "manifest",
    "disk",
    "snapshot",
    "errors",
    "tables",
    "install",
    "suggest",
]
LEVEL = {package: level for level, package in enumerate(LAYERS)}
# Only these may import torch when they are imported themselves; others do it inside a function, when asked to work.
TORCH_PACKAGES = {"rl"}
TORCH_MODULES = {
    "engines/embedded/parts.py",
    "judge/server/reading.py",
    "judge/server/worker.py",
    "checkpoints/convert.py",
    "checkpoints/lora.py",
    "checkpoints/policy.py",
    "checkpoints/safetensors_stream.py",
    "checkpoints/megatron/reader.py",
    "checkpoints/megatron/writer.py",
}
HEAVY = {"torch", "transformers", "ray", "nemo_run"}


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if "assets" not in path.parts)


def package_of(parts: Sequence[str]) -> str:
    """The layer of a module below ``nemotron``: its package, but for two houses in houses."""
    inner = ".".join(parts[:2])
    return inner if inner in ("judge.server", "data.prep") else parts[0]


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return names


def at_import_time(tree: ast.Module) -> set[str]:
    """Imports that run when the module is imported: those outside functions and ``if TYPE_CHECKING``."""
    names: set[str] = set()
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= imported(node)
        for field in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                pending.extend(getattr(node, field, []))
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    package = package_of(path.relative_to(SOURCE).with_suffix("").parts)
    if package == "__init__":
        return
    assert package in LEVEL, f"{path} belongs to no layer"
    for name in imported(ast.parse(path.read_text())):
        root, *parts = name.split(".")
        if root == "nemotron" and parts and package_of(parts) in LEVEL:
            assert LEVEL[package_of(parts)] >= LEVEL[package], f"{path.relative_to(SOURCE)} imports {name}, above it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_heavy_libraries_only_in_the_engine(path: Path) -> None:
    relative = path.relative_to(SOURCE)
    if relative.parts[0] in TORCH_PACKAGES or str(relative) in TORCH_MODULES:
        return
    heavy = {name.split(".")[0] for name in at_import_time(ast.parse(path.read_text()))} & HEAVY
    assert not heavy, f"{relative} imports {heavy} when it is imported"


def test_house_sizes() -> None:
    """No file over 600 lines, no function over 80 but the loop of each algorithm (200)."""
    for path in modules():
        text = path.read_text()
        assert text.count("\n") <= 600, path
        limit = 200 if path.parent.name == "loops" else 80
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                assert node.end_lineno - node.lineno < limit, f"{path}:{node.lineno} {node.name}"
