"""Rows that programs cannot check answers to: what reward functions and held-out checks need of a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import DataFile, files
from nemotron.compile.rules.base import EMBEDDED, Rules
from nemotron.config.schema.extras import HeldoutConfig
from nemotron.config.schema.rewards import RewardConfig
from nemotron.data.rows import read_lines
from nemotron.disk.documents import MalformedError, parse_json
from nemotron.errors import DataError, Finding, NemotronError, Origin
from nemotron.rewards import row_problems

rules: Rules[AnyJob] = Rules("unfit")

ROWS_READ = 2000
"""Rows of each file that are looked at."""

Row = tuple[Path, int, dict[str, Any]]
"""File, line and content."""


@rules.rule("heldout-row", engines=EMBEDDED, needs=("eval.heldout", "data.manifest_path"))
def heldout_rows_can_be_checked(job: AnyJob) -> Iterator[Finding]:
    """What checks held-out answers finds in each row what it needs; it would end the run once the models are loaded."""
    heldout = job.heldout
    if not isinstance(heldout, HeldoutConfig):
        return
    mine = [file for file in files(job) if file.role == "heldout"]
    if heldout.verifier is not None:
        check = RewardConfig.model_validate({"functions": [{"name": heldout.verifier}]})
        for file in mine:
            rows = sample(file)
            unfit = [(path, line, found[0][1]) for path, line, row in rows if (found := row_problems(check, row))]
            if unfit:
                path, line, problem = unfit[0]
                which = "a row" if len(unfit) == 1 else f"{len(unfit)} rows"
                yield job.error(
                    "eval.heldout.verifier",
                    f"the check `{heldout.verifier}` cannot be made on {which} of the held-out data: {problem}",
                    kind=DataError,
                    origin=Origin(str(path), line),
                    hint="check answers with `eval.heldout.rewards` and `~eval.heldout.verifier`, or set "
                    "`eval.heldout=null`",
                )
    elif heldout.rewards is not None and not job.scores_rows:
        for file in mine:
            yield from unfit_rows(job, file, "eval.heldout.rewards.functions", heldout.rewards, set())


def unfit_rows(job: AnyJob, file: DataFile, key: str, rewards: RewardConfig, told: set[str]) -> Iterator[Finding]:
    """The first unfit row of the functions that a file does not fit, and how many there are.

    ``told`` has the functions that an earlier file does not fit either: they ask for what no row has.
    """
    found: dict[int, tuple[Origin, Counter[str]]] = {}
    rows = sample(file)
    try:
        for path, line, row in rows:
            for index, problem in row_problems(rewards, row):
                found.setdefault(index, (Origin(str(path), line), Counter()))[1][problem] += 1
    except NemotronError:  # the function cannot be set up at all: `reward-function` says so
        return
    unfit = {
        index: one
        for index, one in sorted(found.items())
        if not (rewards.functions[index].optional and one[1].total() < len(rows))
    }
    names = {index: job.resolved.source(f"{key}.{index}") for index in unfit}
    fresh = [index for index, name in names.items() if name not in told]
    told |= set(names.values())
    if not fresh:
        return
    index = fresh[0]
    origin, problems = unfit[index]
    function, count = rewards.functions[index], problems.total()
    which = "a row" if count == 1 else f"{count} rows"
    others = [f"`{rewards.functions[other].shown}`: {_reasons(unfit[other][1])}" for other in fresh[1:]]
    message = f"the reward function `{function.shown}` cannot score {which} of the {file.told} data: "
    message += _reasons(problems) + (f"; nor can {', '.join(others)}" if others else "")
    if rewards.unusable_rows == "leave_out" and count < len(rows):
        yield job.warning(f"{key}.{index}", f"{message}: they are left out", origin=origin)
        return
    hint = f"name the right field in `{key}.{index}`, or give the rows what it needs"
    if count < len(rows):
        hint += f"; `{key.removesuffix('.functions')}.unusable_rows=leave_out` leaves these rows out"
    yield job.error(f"{key}.{index}", message, kind=DataError, origin=origin, hint=hint)


REASONS_SHOWN = 5


def _reasons(problems: Counter[str]) -> str:
    """What is wrong with rows, the commonest first and with its number where there are several."""
    if len(problems) == 1:
        return next(iter(problems))
    shown = [
        f"{problem} ({count:,} row{'s' if count > 1 else ''})" for problem, count in problems.most_common(REASONS_SHOWN)
    ]
    rest = len(problems) - len(shown)
    return ", ".join(shown) + (f" and {rest} more reasons" if rest else "")


def sample(file: DataFile) -> tuple[Row, ...]:
    """The first rows of a data file that can be read; broken ones are another rule's business."""
    return _sample(tuple((path, _version(path)) for path in file.paths))


@lru_cache(maxsize=8)
def _sample(files: tuple[tuple[Path, int], ...]) -> tuple[Row, ...]:
    return tuple(islice((row for path, version in files if version for row in _rows(path)), ROWS_READ))


def _rows(path: Path) -> Iterator[Row]:
    try:
        for number, line in read_lines(path):
            row = _object(line)
            if row is not None:
                yield path, number, row
    except DataError:  # `data-file` says so
        return


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except MalformedError:
        return None
    return row if isinstance(row, dict) else None


def _version(path: Path) -> int:
    """Changes with the file; 0 when there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0
