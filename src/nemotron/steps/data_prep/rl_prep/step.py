"""What the command does for this step: check before the start, describe, run. The work is in :mod:`nemotron.data`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.compile.declaration import PlainStep
from nemotron.compile.plan import FileRef, Preflight, Process
from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.errors import Finding, NotAvailableError
from nemotron.install import install_extra

if TYPE_CHECKING:
    from nemotron.compile.plan import Surroundings
    from nemotron.config.layers import Resolved
    from nemotron.data.prep.prepare import Result
    from nemotron.engines.base import Attempt

_PACKAGES = ("orjson", "xxhash", "numpy")
"""Packages without which nothing of this can be imported; the functions below import the rest when they are called."""


_DEFAULT = Path(__file__).resolve().parent / "config" / "default.yaml"
_WHERE = "plain Python in this process"


def preflight(config: DataPrepConfig, resolved: Resolved, where: Surroundings) -> Preflight:
    """Check the blend and its sources, then say what would be read and written."""
    findings = tuple(check(config, resolved))
    if any(finding.severity == "error" for finding in findings):
        return Preflight(engine="plain", engine_reason=_WHERE, findings=findings)
    processes, inputs, outputs = describe(config)
    return Preflight(
        engine="plain",
        engine_reason=_WHERE,
        findings=findings,
        processes=processes,
        inputs=inputs,
        outputs=outputs,
    )


def check(config: DataPrepConfig, resolved: Resolved) -> Iterable[Finding]:
    """Everything that can be known before rows are read: blend, sources, shares, output folder, packages."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        message = f"data preparation needs the packages {', '.join(missing)}"
        hint = install_extra("data")
        return [Finding("error", "package-missing", message, hint=hint, exit_code=NotAvailableError.exit_code)]
    from nemotron.data.prep.checks import check_config

    return (*_nothing_given(config, resolved), *check_config(config, resolved.origin))


def _nothing_given(config: DataPrepConfig, resolved: Resolved) -> Iterable[Finding]:
    """The shipped sample lets the step run as it is; who gave no data must be told that none of theirs is in it."""
    origin = resolved.origin("blend_path")
    if config.blend_path is not None and origin is not None and Path(origin.source).resolve() == _DEFAULT:
        message = "no data are given: the shipped sample of the tiny world is prepared"
        hint = "set `blend_path=...` to a data file, a folder, a glob, `hf://owner/name` or a blend file"
        yield Finding("warning", "sample-data", message, "blend_path", origin, hint)


def describe(config: DataPrepConfig) -> tuple[tuple[Process, ...], tuple[FileRef, ...], tuple[FileRef, ...]]:
    """Processes, inputs and outputs of the plan; called when :func:`check` found no error."""
    from nemotron.data.prep.blend import expand, read_blend
    from nemotron.data.prep.prepare import processes_of
    from nemotron.data.prep.reading import size_of

    helpers = processes_of(config) - 1
    extra = f" and {helpers} helper{'s' if helpers > 1 else ''}" if helpers else ""
    key = "blend_path" if config.blend_path else "blend"
    inputs = []
    for dataset in read_blend(config.blend_path or (config.blend.model_dump() if config.blend else {})):
        if dataset.path.startswith("hf://"):
            # A plan opens no connection.
            inputs.append(FileRef(f"{dataset.split or 'all'} rows", key, dataset.path, "Hugging Face hub"))
            continue
        files = expand(dataset)
        inputs += [
            FileRef(f"{file.split or 'all'} rows", key, file.label, f"{size_of(file):,} bytes") for file in files
        ]
    output = Path(config.output_dir)
    outputs = (
        FileRef("shards", "output_dir", str(output), f"{config.num_shards_per_split} per split"),
        FileRef("manifest", None, str(output / "manifest.json"), "every shard with rows, bytes, SHA-256; every source"),
        FileRef("rejects", None, str(output / "rejects.jsonl"), "every line that is not used, with its reason"),
    )
    return (Process("data", f"this process{extra}: read, check, sort, write"),), tuple(inputs), outputs


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


STEP = PlainStep(config=DataPrepConfig, check=preflight, run="nemotron.steps.data_prep.rl_prep.step:run")
