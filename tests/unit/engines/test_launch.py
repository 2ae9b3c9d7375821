"""A run says that it starts before it does anything that takes long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHILD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from nemotron.engines import launch

runs = Path(sys.argv[1])

def run(folder, secrets):
    assert "torch" not in sys.modules
    print(f"working in {folder.path}", file=sys.stderr)
    if not secrets:
        raise KeyboardInterrupt

def fingerprints(inputs):
    print("hashing", file=sys.stderr)
    return []

plan = SimpleNamespace(
    engine="embedded", step="rl/nemo_rl/rlhf", fingerprint="f" * 64, config_name="tiny", inputs=[], run_id="the-run",
    job=lambda: {"step": "rl/nemo_rl/rlhf", "config": {}, "fingerprint": "f" * 64}, secrets=lambda: {},
)
launch.fingerprints = fingerprints
launch.step_code = lambda step: SimpleNamespace(run=run)
try:
    launch.launch(plan, SimpleNamespace(run=run), runs_dir=runs, resume=False)
except KeyboardInterrupt:
    print("----", file=sys.stderr)
try:
    launch.resume(runs / "the-run")
except KeyboardInterrupt:
    pass
"""


def test_the_first_line_comes_before_hashing_and_before_the_step_works(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    first, again = done.stderr.split("----\n")
    assert first.splitlines()[:3] == [
        f"rl/nemo_rl/rlhf: starting in {tmp_path}/the-run, loading libraries ...",
        "hashing",
        f"working in {tmp_path}/the-run",
    ]
    assert again.splitlines()[:2] == [
        f"rl/nemo_rl/rlhf: going on in {tmp_path}/the-run, loading libraries ...",
        f"working in {tmp_path}/the-run",
    ]
