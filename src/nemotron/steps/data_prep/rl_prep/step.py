"""What the command does for this step: check before the start, describe, run. The work is in :mod:`nemotron.data`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nemotron.compile.declaration import PlainStep
from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.steps.data_prep.rl_prep.job import PrepJob
from nemotron.steps.data_prep.rl_prep.rules import STAGES

if TYPE_CHECKING:
    from nemotron.data.prep.prepare import Result
    from nemotron.engines.base import Attempt


def run(attempt: Attempt) -> None:
    """Prepare the data; the summary goes to stderr, the manifest's path to stdout.

    Raises:
        DataError: rows or sources that cannot be used. OutputError: the output cannot be written.
    """
    from nemotron.data.prep.prepare import prepare
    from nemotron.data.prep.progress import ProgressBar

    run, config = attempt.run, attempt.settings(DataPrepConfig)
    run.write_status(state="running")
    with ProgressBar() as bar:
        result = prepare(config, progress=bar.update)
    _record(attempt, result)
    for line in summary(result):
        print(line, file=sys.stderr)
    print(result.path)
    run.write_status(state="finished", exit_code=0)


def _record(attempt: Attempt, result: Result) -> None:
    """What made the data, beside them: `output_dir` lies wherever the user wants, and says nothing of the run."""
    from nemotron.artifacts.fingerprint import fingerprint_as_named
    from nemotron.artifacts.record import read_record, write_record
    from nemotron.disk.faults import output_errors

    folder, content = result.path.parent, fingerprint_as_named(result.path)
    known = read_record(folder) or {}
    if not result.fresh and known.get("fingerprint") == content:
        return  # the run that made them is named already
    job = attempt.job
    with output_errors(folder):
        write_record(
            folder,
            kind="prepared_data",
            step=job.step,
            fingerprint=content,
            inputs=[one.model_dump(mode="json") for one in attempt.inputs],
            details={"run": attempt.run.id, "config_fingerprint": job.fingerprint},
        )


def summary(result: Result) -> list[str]:
    """The result in a few lines."""
    manifest = result.manifest
    found = [f"warning: {text}" for text in result.warnings]
    if not result.fresh:
        found.append("nothing to do: this data set is there already, whole and from the same input and config")
    for name, split in manifest["splits"].items():
        found.append(f"{name}: {split['rows']:,} rows in {len(split['shards'])} shards")
        found += [f"  {mine['rows']:,} read as {mine['kind']}: {mine['fields']}" for mine in split.get("taken_for", ())]
    rejects, duplicates = manifest["rejects"], manifest["duplicates"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejects["by_reason"].items())
    found.append(f"rejected: {rejects['total']:,}" + (f" ({reasons})" if reasons else ""))
    alike = f"duplicates: {duplicates['exact']:,} exact, {duplicates['near']:,} near"
    found.append(f"{alike}; {duplicates['prompts']:,} repeated prompts")
    return found


STEP = PlainStep(config=DataPrepConfig, job=PrepJob, rules=STAGES, run="nemotron.steps.data_prep.rl_prep.step:run")
