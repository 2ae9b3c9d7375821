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
    "reports",
    "artifacts",
    "data",
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
    "own_code",
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


def against_the_layers(relative: Path, tree: ast.Module) -> list[str]:
    package = package_of(relative.with_suffix("").parts)
    if package == "__init__":
        return []
    if package not in LEVEL:
        return [f"{relative} belongs to no layer"]
    found = [name.split(".") for name in imported(tree)]
    return [
        f"{relative} imports {'.'.join(parts)}, above it"
        for root, *parts in found
        if root == "nemotron" and parts and LEVEL.get(package_of(parts), len(LEVEL)) < LEVEL[package]
    ]


def heavy_when_imported(relative: Path, tree: ast.Module) -> list[str]:
    if relative.parts[0] in TORCH_PACKAGES or str(relative) in TORCH_MODULES:
        return []
    heavy = {name.split(".")[0] for name in at_import_time(tree)} & HEAVY
    return [f"{relative} imports {heavy} when it is imported"] if heavy else []


def asks_for_a_home(relative: Path, tree: ast.Module) -> list[str]:
    return [
        f"{relative}:{node.lineno} asks for a home, which raises where there is none: `disk/home.py` does not"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (node.attr == "expanduser" or (node.attr == "home" and ast.unparse(node.value).endswith("Path")))
        and relative != Path("disk/home.py")
    ]


def too_large(relative: Path, tree: ast.Module) -> list[str]:
    limit = 200 if relative.parent.name == "loops" else 80
    return [
        f"{relative}:{node.lineno} {node.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno
        and node.end_lineno - node.lineno >= limit
    ]


RULES = (against_the_layers, heavy_when_imported, asks_for_a_home, too_large)


@pytest.fixture(scope="module")
def broken() -> dict[str, list[str]]:
    """What each rule says; a module is parsed once for all of them."""
    found: dict[str, list[str]] = {rule.__name__: [] for rule in RULES}
    for path in modules():
        tree = ast.parse(path.read_text())
        for rule in RULES:
            found[rule.__name__] += rule(path.relative_to(SOURCE), tree)
    return found


def test_imports_point_one_way(broken: dict[str, list[str]]) -> None:
    assert len(modules()) > 500
    assert broken["against_the_layers"] == []


def test_heavy_libraries_only_in_the_engine(broken: dict[str, list[str]]) -> None:
    assert broken["heavy_when_imported"] == []


def test_a_home_that_is_not_there_is_no_bug(broken: dict[str, list[str]]) -> None:
    assert broken["asks_for_a_home"] == []


def test_house_sizes(broken: dict[str, list[str]]) -> None:
    """No file over 600 lines, no function over 80 but the loop of each algorithm (200)."""
    assert [path for path in modules() if path.read_text().count("\n") > 600] == []
    assert broken["too_large"] == []


@pytest.mark.parametrize(
    ("relative", "text", "said"),
    [
        ("tables.py", "def f():\n    from nemotron.cli import main", "tables.py imports cli, above it"),
        ("own/x.py", "", "own/x.py belongs to no layer"),
        ("cli/x.py", "try:\n    import torch.nn\nexcept ImportError: ...", "cli/x.py imports {'torch'} when"),
        ("cli/x.py", "Path(name).expanduser()", "cli/x.py:1 asks for a home"),
        ("cli/x.py", "here = pathlib.Path.home()", "cli/x.py:1 asks for a home"),
        ("rl/x.py", "def f():\n" + "    x = 1\n" * 80, "rl/x.py:1 f"),
    ],
)
def test_what_breaks_a_rule_is_said(relative: str, text: str, said: str) -> None:
    found = [one for rule in RULES for one in rule(Path(relative), ast.parse(text))]
    assert any(one.startswith(said) for one in found)
