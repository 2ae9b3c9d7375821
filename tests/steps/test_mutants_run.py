"""A mutated config that compiles runs for a step: what the compile could have known, it has said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.forked import forked
from tests.in_process import nemotron
from tests.unit.compile.mutations import Mutant, near_mutant, written

LONGEST_S = 120
MOST_BYTES = 6 << 30
# EVERY_MUTANT=1 in the environment lets `make full` run two hundred, for half an hour.
MANY = 200 if os.environ.get("EVERY_MUTANT") else 5
ENDS = {
    "`limits.": "what it measures of a policy is not known before",
    "is not finite": "a learning rate that is too high for these rows",
    "diverged": "likewise",
    "of the judge's verdicts": "what a judge will say",
    "the judge is not fit": "likewise",
    "the time that the config allows": "how fast a machine is",
}
"""Reasons to end that only the run can know, by words of the message."""


def ends(mutated: Mutant, folder: Path) -> tuple[int, str]:
    """The code of a run and what it said, in a process of its own: one that hangs or eats memory ends alone."""
    words = ("steps", "run", mutated.step, "-c", str(folder / "mutant.yaml"), "--runs-dir", str(folder / "runs"))
    done = forked(words, folder, LONGEST_S, MOST_BYTES, {})
    return done.code, done.said


def wrong(code: int, said: str) -> bool:
    """Whether a run ended for a reason that was there before it began."""
    return code != 0 and not any(words in said for words in ENDS)


@pytest.mark.timeout(7200)
@pytest.mark.full
def test_what_compiles_runs(tmp_path: Path) -> None:
    failed, ran, seed = [], 0, 0
    while ran < MANY:
        seed += 1
        folder = tmp_path / str(seed)
        folder.mkdir()
        mutated = near_mutant(seed)
        words = ("-c", str(written(mutated, folder)), "--dry-run", "--runs-dir", str(folder / "runs"))
        if nemotron("steps", "run", mutated.step, *words, cwd=folder).code != 0:
            continue
        ran += 1
        code, said = ends(mutated, folder)
        if wrong(code, said):
            failed.append(f"seed {seed}, {mutated.step}: code {code}\n{said[-700:]}")
    assert not failed, f"{len(failed)} of {ran}\n" + "\n\n".join(failed)
