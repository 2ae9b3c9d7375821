"""The public index has a package of our import's name that is not ours: no hint, page or script may install it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import nemotron
from nemotron import install

ROOT = Path(__file__).parents[2]
SHOWN = ("README.md", "AGENTS.md", "CHANGELOG.md", "Makefile", ".ci", "docs", "src", "scripts", "benchmarks")
INSTALLS = re.compile(r"\b(?:pip3?|pipx|uv(?: pip| tool)?) (?:install|add|run --with)\b([^`\n]*)")
OURS = re.compile(r"(?<![\w./\-])nemotron(?:-steps|_steps)?(?![\w./])")
"""The name as a word of its own: not `./nemotron`, not `nemotron/`, not `make_nemotron`."""


def texts() -> list[Path]:
    """Every text file that users read or that the wheel carries."""
    found = [ROOT / name for name in SHOWN if (ROOT / name).is_file()]
    for name in SHOWN:
        if (ROOT / name).is_dir():
            found += [path for path in (ROOT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in found if b"\0" not in path.read_bytes()[:4096]]


def foreign(text: str) -> list[str]:
    """Lines that install this product by a name of the public index."""
    return [match[0] for match in INSTALLS.finditer(text) if OURS.search(match[1].partition("#")[0])]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("hint=\"pip install 'nemotron[local]'\"", True),
        ("pip install nemotron", True),
        ("`pip install 'nemotron-steps[wandb]'`", True),
        ("pipx install nemotron", True),
        ("uv pip install --system nemotron[local]", True),
        ("uv run --with nemotron x", True),
        ("pip install -e '.[local]'", False),
        ("pip install '/home/me/nemotron[local]'", False),
        ("pip install ./nemotron", False),
        ("pip install '.[wandb]'    # in the checkout of nemotron", False),
        ("`pip install .` brings the command `nemotron`", False),
    ],
)
def test_what_counts_as_such_a_line(line: str, wrong: bool) -> None:
    assert bool(foreign(line)) == wrong


def test_no_line_installs_by_a_name_that_is_not_ours() -> None:
    files = texts()
    assert {"README.md", "step.toml", "engine.py", "data.md", "setup_env.py"} <= {path.name for path in files}
    found = {str(path.relative_to(ROOT)): lines for path in files if (lines := foreign(path.read_text()))}
    assert found == {}


def test_hints_name_an_extra_and_no_package() -> None:
    """A package by its own name would come in a version that nobody tried: the extras say which fit."""
    found = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if path.name != "install.py" and (lines := INSTALLS.findall(path.read_text()))
    }
    assert found == {}


def test_the_metadata_have_a_name_of_our_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == install.DISTRIBUTION != "nemotron"
    assert project["scripts"] == {"nemotron": "nemotron.cli.main:main"}
    assert project["version"] == nemotron.__version__
    assert metadata.version(install.DISTRIBUTION) == nemotron.__version__


def installed(tmp_path: Path, origin: str | None) -> str:
    """The hint of a copy that lies in a folder of packages, with what pip notes about where it came from."""
    site = tmp_path / "site-packages"
    shutil.copytree(Path(install.__file__).parent, site / "nemotron", ignore=shutil.ignore_patterns("assets", "steps"))
    info = site / "nemotron_steps-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nemotron-steps\nVersion: 0.1.0\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps({"url": origin, "dir_info": {}}))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from nemotron.install import install_extra as e; print(e('data'))"
    )
    command = [sys.executable, "-S", "-c", code, str(site)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={}).stdout.strip()


def test_the_hint_names_the_checkout_that_runs() -> None:
    assert install.install_extra("local") == f"pip install -e '{ROOT}[local]'"


def test_the_hint_names_the_folder_that_pip_installed_from(tmp_path: Path) -> None:
    (tmp_path / "my checkout").mkdir()
    place = (tmp_path / "my checkout").as_uri()
    assert installed(tmp_path, place) == f"pip install '{tmp_path}/my checkout[data]'"


def test_the_hint_names_the_wheel_that_pip_installed_from(tmp_path: Path) -> None:
    wheel = tmp_path / "nemotron_steps-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert installed(tmp_path, wheel.as_uri()) == f"pip install '{wheel}[data]'"


@pytest.mark.parametrize("origin", [None, "file:///no/such/folder", "https://example.org/nemotron.whl"])
def test_the_hint_says_it_in_words_where_the_place_is_not_known(tmp_path: Path, origin: str | None) -> None:
    assert installed(tmp_path, origin) == ("install the extra `data` of the checkout or wheel that nemotron came from")
