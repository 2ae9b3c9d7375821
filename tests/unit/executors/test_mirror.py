"""What a job without shared storage unpacks, in the process that really unpacks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from nemotron.executors import mirror


def start(run: Path, number: int, there: Path) -> list[str]:
    """The files of the run folder there, after an attempt that does nothing."""
    words = mirror.bootstrap_words(sys.executable, str(there), str(there.parent / "code"), [sys.executable, "-c", ""])
    variables = mirror.packed(run, number, with_code=False)
    (there.parent / "code").mkdir(parents=True, exist_ok=True)
    subprocess.run(words, env={**os.environ, **variables}, check=True, capture_output=True)
    return sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())


def test_a_further_attempt_brings_its_job_and_keeps_the_status(tmp_path: Path) -> None:
    """`runs resume --max-steps` rewrites the job here; on a mount that survives lies the earlier one."""
    run, there = tmp_path / "run", tmp_path / "far" / "run"
    (run / "attempts" / "1").mkdir(parents=True)
    (run / "attempts" / "2").mkdir()
    for number in (1, 2):
        (run / f"attempts/{number}/handle.json").write_text("{}")
    (run / "job.json").write_text(json.dumps({"steps": 10}))
    (run / "status.json").write_text('{"state": "starting"}')
    expected = ["attempts/1/handle.json", "job.json", "status.json"]
    assert start(run, 1, there) == expected
    (there / "status.json").write_text('{"state": "finished", "step": 10}')
    (run / "job.json").write_text(json.dumps({"steps": 20}))
    assert start(run, 2, there) == sorted([*expected, "attempts/2/handle.json"])
    assert json.loads((there / "job.json").read_text()) == {"steps": 20}
    assert json.loads((there / "status.json").read_text()) == {"state": "finished", "step": 10}
