"""The README as a newcomer reads it: a fresh clone, one shell, every block in order; and the wheel, installed.

Needs git, make, a Python with pip, and the package index for `make tiny`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2500)]

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a new shell has, what a machine needs to reach its package index, and what one that is busy asks for.
KEPT = re.compile(
    r"HOME|OMP_NUM_THREADS|LANG|LC_\w+|TMPDIR|XDG_\w+|PIP_\w+|UV_\w+|\w*_CERT_\w+|\w*_CA_BUNDLE|SSL_\w+|\w*_proxy|\w*_PROXY"
)
NOT_RUN = ["git clone ADDRESS nemotron && cd nemotron", "make test", "nemotron profiles init"]
"""Blocks marked `no-run`: the clone is this test's own, the tests run apart (`.ci/run`), and clusters are not there."""
MADE = "make tiny "
"""What a given clone has been through: its run is there."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its info string (``sh``, ``sh no-run``, ``console``, ``text``) and what is in it."""

    info: str
    text: str


def blocks(readme: str) -> list[Block]:
    return [Block(info.strip(), text) for info, text in FENCE.findall(readme)]


def newcomer() -> dict[str, str]:
    """The environment of a new shell: nothing of this test run's own venv or make."""
    own = {str(Path(sys.prefix) / "bin"), str(ROOT / ".venv" / "bin")}
    path = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder not in own]
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    return {**kept, "PATH": os.pathsep.join(path)}


def script(found: list[Block]) -> str:
    """All blocks as one bash script that ends at the first command that fails.

    What a ``console`` block shows after its `$ command` must be exactly what the command says.
    """
    lines = ["set -e -o pipefail"]
    for number, block in enumerate(found):
        if block.info == "sh":
            lines += [f"echo '@@ block {number}' >&2", block.text]
        elif block.info == "console":
            command, _, output = block.text.removeprefix("$ ").partition("\n")
            lines += [f"echo '@@ block {number}' >&2", f"cat > ../wanted <<'@@'\n{output}@@"]
            lines += [f"{{ {command} ; }} > ../said 2>&1 || true", "diff ../wanted ../said >&2"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh one; ``NEMOTRON_CLONE`` names one in which `make tiny` has just been shown to work on a bare machine."""
    if given := os.environ.get("NEMOTRON_CLONE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("newcomer") / "nemotron"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True, timeout=120)
    return folder


def test_every_block_says_what_it_is(clone: Path) -> None:
    found = blocks((clone / "README.md").read_text())
    assert {block.info for block in found} == {"sh", "sh no-run", "console", "text"}
    skipped = [block.text for block in found if block.info == "sh no-run"]
    assert len(skipped) == len(NOT_RUN)
    assert all(text.startswith(start) for text, start in zip(skipped, NOT_RUN, strict=True))
    assert all(block.text.startswith("$ nemotron ") for block in found if block.info == "console")


def test_every_block_works_in_order(clone: Path) -> None:
    found = blocks((clone / "README.md").read_text())
    text = script(found)
    if "NEMOTRON_CLONE" in os.environ:
        assert MADE in text
        text = text.replace(MADE, "")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc"],
        input=text,
        cwd=clone,
        env=newcomer(),
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    ran = [block for block in found if block.info in ("sh", "console")]
    assert done.stderr.count("@@ block") == len(ran) > 5
    assert "Traceback" not in done.stderr
    for made in ("my-policy/latest_checkpointed_iteration.txt", "my-rlhf-model/model.safetensors", "prepared"):
        assert (clone / made).exists()
    assert "finished  30 of 30 steps" in done.stdout + done.stderr
    changed = subprocess.run(["git", "diff", "--stat"], cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == ""


def test_the_wheel_has_a_name_of_its_own_and_works(clone: Path, tmp_path: Path) -> None:
    """`pip install WHEEL`: import and command are `nemotron`; the hint of a missing extra names that very wheel."""

    def sh(*command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=newcomer(), capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout + done.stderr

    sh(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(clone))
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name == "nemotron_steps-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read("nemotron_steps-0.1.0.dist-info/METADATA").decode()
        texts = [archive.read(name).decode(errors="replace") for name in archive.namelist() if "assets" not in name]
    assert "\nName: nemotron-steps\n" in metadata
    named = re.compile(r"pip install ['\"]?nemotron\b")
    assert [line for text in texts for line in text.splitlines() if named.search(line)] == []
    sh(sys.executable, "-m", "venv", "venv")
    sh("venv/bin/pip", "install", "--quiet", str(wheel))
    sh("venv/bin/python", "-c", "import nemotron")
    assert "nemotron 0.1.0" in sh("venv/bin/nemotron", "--version")
    said = sh("venv/bin/nemotron", "steps", "run", "rlhf", "-c", "tiny", code=10)
    assert f"hint: pip install '{wheel}[local]'" in said
    assert "nemotron-steps" in sh("venv/bin/pip", "install", "--dry-run", "--no-deps", f"{wheel}[local]")
