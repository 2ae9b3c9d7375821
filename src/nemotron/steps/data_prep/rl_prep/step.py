"""What the command does for this step: check before the start, describe, run. The work is in :mod:`nemotron.data`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.compile.describe import FileRef, Process
from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.checks import check_config
from nemotron.data.prepare import Result, find_sources, prepare, processes_of
from nemotron.data.progress import ProgressBar
from nemotron.data.reading import size_of
from nemotron.errors import Finding, NemotronError

if TYPE_CHECKING:
    from nemotron.config.layers import Resolved
    from nemotron.runs.folder import RunFolder


def check(config: DataPrepConfig, resolved: Resolved) -> Iterable[Finding]:
    """Everything that can be known before rows are read: blend, sources, shares, output folder, packages."""
    return check_config(config, resolved.origin)


def describe(config: DataPrepConfig) -> tuple[tuple[Process, ...], tuple[FileRef, ...], tuple[FileRef, ...]]:
    """Processes, inputs and outputs of the plan."""
    helpers = processes_of(config) - 1
    where = (
        "this process"
        + (f" and {helpers} helper" + "s" * (helpers > 1) if helpers else "")
        + ": read, check, sort, write"
    )
    try:
        sources = find_sources(config)
    except NemotronError:
        # `check` has a finding for it.
        sources = ()
    key = "blend_path" if config.blend_path else "blend"
    inputs = tuple(FileRef(f"{s.split or 'all'} rows", key, s.label, f"{size_of(s):,} bytes") for s in sources)
    output = Path(config.output_dir)
    outputs = (
        FileRef("shards", "output_dir", str(output), f"{config.num_shards_per_split} per split"),
        FileRef("manifest", None, str(output / "manifest.json"), "every shard with rows, bytes, SHA-256; every source"),
        FileRef("rejects", None, str(output / "rejects.jsonl"), "every line that is not used, with its reason"),
    )
    return (Process("data", where),), inputs, outputs


def run(run: RunFolder, config: DataPrepConfig, secrets: Mapping[str, str]) -> None:
    """Prepare the data; the summary goes to stderr, the manifest's path to stdout.

    Raises:
        DataError: rows or sources that cannot be used. OutputError: the output cannot be written.
    """
    run.write_status(state="running")
    with ProgressBar() as bar:
        result = prepare(config, progress=bar.update)
    for line in summary(result):
        print(line, file=sys.stderr)
    print(result.path)
    run.write_status(state="finished", exit_code=0)


def summary(result: Result) -> list[str]:
    """The result in a few lines."""
    manifest = result.manifest
    found = [f"warning: {text}" for text in result.warnings]
    if not result.fresh:
        found.append("nothing to do: this data set is there already, whole and from the same input and config")
    for name, split in manifest["splits"].items():
        found.append(f"{name}: {split['rows']:,} rows in {len(split['shards'])} shards")
    rejects, duplicates = manifest["rejects"], manifest["duplicates"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejects["by_reason"].items())
    found.append(f"rejected: {rejects['total']:,}" + (f" ({reasons})" if reasons else ""))
    alike = f"duplicates: {duplicates['exact']:,} exact, {duplicates['near']:,} near"
    found.append(f"{alike}; {duplicates['prompts']:,} repeated prompts")
    return found
