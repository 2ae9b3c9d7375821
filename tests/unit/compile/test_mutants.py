"""Whatever is in a config, the compile ends in a plan or an error, and soon."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from tests.in_process import nemotron
from tests.unit.compile.mutations import mutant, written

LONGEST_S = 10.0
CODES = {0, 2, 3, 4, 5, 6, 8, 10}
"""Of a dry run: what ends with 1 is a bug, and of rewards, engines and clusters nothing is known yet."""


# A third of a second each: EVERY_MUTANT=1 in the environment lets `make full` take ten thousand.
MANY = 10_000 if os.environ.get("EVERY_MUTANT") else 190


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, MANY), id="many", marks=pytest.mark.full)])
def test_a_mutated_config_compiles_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: range) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for the report of a bug
    failed = []
    for seed in seeds:
        mutated = mutant(seed)
        words = ("-c", str(written(mutated, tmp_path)), "--dry-run", "--runs-dir", str(tmp_path / "runs"))
        started = time.process_time()
        done = nemotron("steps", "run", mutated.step, *words, *mutated.overrides, cwd=tmp_path)
        # Of the processor: the machine may have more to do.
        took = time.process_time() - started
        if done.code not in CODES or "this is a bug" in done.stderr or took > LONGEST_S:
            failed.append(f"seed {seed}, {mutated.step}: code {done.code} after {took:.1f} s\n{done.stderr[-500:]}")
    assert not failed, "\n\n".join(failed[:10])
