"""A run says that it starts before it does anything that takes long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = """
import sys
from importlib.abc import MetaPathFinder
from nemotron.cli.main import main

class Interrupted(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        # Whether torch is installed is asked before; that loads nothing of it.
        if name.startswith("torch."):
            print("torch is imported", file=sys.stderr)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
sys.exit(main(sys.argv[1:]))
"""


def run(*words: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    return done.stderr.splitlines()


def test_the_first_line_comes_before_torch(tmp_path: Path) -> None:
    lines = run("steps", "run", "dpo", "-c", "tiny", "--runs-dir", str(tmp_path))
    [folder] = tmp_path.iterdir()
    said = [line for line in lines if line.startswith(("rl/nemo_rl/dpo", "torch", "interrupted"))]
    assert said == [
        f"rl/nemo_rl/dpo: starting in {folder}, loading libraries ...",
        "torch is imported",
        f"interrupted; go on with `nemotron runs resume {folder.name}`",
    ]
    lines = run("runs", "resume", folder.name, "--runs-dir", str(tmp_path))
    assert lines[:2] == [f"rl/nemo_rl/dpo: going on in {folder}, loading libraries ...", "torch is imported"]
