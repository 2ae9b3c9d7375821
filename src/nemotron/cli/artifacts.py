"""``nemotron artifacts``: look at a checkpoint, data set or result; check that it is whole; where it came from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.cli.group import PATH, argument, as_json, group, option, runs_dir
from nemotron.cli.render import print_columns
from nemotron.outcome import print_error

if TYPE_CHECKING:
    from nemotron.artifacts.inspect import CheckpointFacts, DataFacts, Inspection, PreparedFacts, ResultFacts

app = group("Inspect and verify checkpoints, data and results.")

artifact_path = argument(
    "path",
    metavar="PATH",
    type=PATH,
    help="A checkpoint folder, prepared data or their manifest, a JSONL file or folder, results.",
)
only_type = option("--type", "kind", metavar="TYPE", help="Only artifacts of this type.")


@app.command("inspect")
@artifact_path
@as_json
def inspect_command(path: Path, as_json: bool) -> None:
    """Show what an artifact is: type, family, size, dtype, shards, vocabulary, tokenizer, provenance."""
    from nemotron.artifacts.inspect import inspect

    found = inspect(path)
    if as_json:
        _print_json(found.to_json())
    else:
        print_columns(_rows(found), header=("FACT", "VALUE"))


@app.command("verify")
@artifact_path
@as_json
def verify_command(path: Path, as_json: bool) -> None:
    """Check that an artifact is whole: files, checksums, names and shapes, and its record where it has one."""
    from dataclasses import asdict

    from nemotron.artifacts.verify import verify

    found = verify(path)
    if as_json:
        _print_json(asdict(found))
        return
    rows = [("type", found.type), *(("ok", check) for check in found.checks), ("fingerprint", found.fingerprint)]
    print_columns(rows, header=("CHECK", "RESULT"))


@app.command("list")
@only_type
@as_json
@runs_dir
def list_command(kind: str | None, as_json: bool, runs_dir: Path) -> None:
    """List what the runs have made; `${artifact:RUN:TYPE}` names one in a config or an override."""
    from nemotron.artifacts.made import all_made
    from nemotron.errors import ArtifactError, NotFoundError
    from nemotron.manifest import check_type
    from nemotron.runs.folder import list_runs
    from nemotron.runs.words import relative

    check_type(kind)
    rows = []
    for run in list_runs(runs_dir):
        try:
            rows += [(run.id, type_, path) for type_, path in all_made(run) if kind in (None, type_)]
        except (ArtifactError, NotFoundError) as error:
            print_error(error, label="warning")
    if as_json:
        _print_json([{"run": run, "type": type_, "path": str(path)} for run, type_, path in rows])
    elif rows:
        print_columns([(run, type_, relative(str(path))) for run, type_, path in rows], header=("RUN", "TYPE", "PATH"))
    else:
        print("no artifacts", file=sys.stderr)


@app.command("lineage")
@artifact_path
@as_json
def lineage_command(path: Path, as_json: bool) -> None:
    """Show the chain of data, judge, models, configs and code that made an artifact."""
    from nemotron.artifacts.lineage import lineage, lines

    found = lineage(path)
    if as_json:
        _print_json(found.to_json())
    else:
        print("\n".join(lines(found)))


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def _rows(found: Inspection) -> list[tuple[str, str]]:
    from nemotron.artifacts.inspect import AdapterFacts, CheckpointFacts, DataFacts, PreparedFacts

    rows = [("path", found.path), ("type", found.type)]
    if isinstance(found.facts, CheckpointFacts):
        rows += _checkpoint_rows(found.facts)
    elif isinstance(found.facts, AdapterFacts):
        facts = found.facts
        rows += [("rank", str(facts.rank)), ("alpha", f"{facts.alpha:g}"), ("modules", ", ".join(facts.modules))]
        rows += [("base model", facts.base or "not named"), ("shards", f"1 file, {facts.nbytes:,} bytes")]
    elif isinstance(found.facts, PreparedFacts):
        rows += _prepared_rows(found.facts)
    elif isinstance(found.facts, DataFacts):
        rows += _data_rows(found.facts)
    else:
        rows += _result_rows(found.facts)
    return rows + _record_rows(found.record)


def _checkpoint_rows(facts: CheckpointFacts) -> list[tuple[str, str]]:
    rows = [
        ("family", facts.family),
        ("parameters", f"{facts.parameters:,}"),
        ("dtype", ", ".join(f"{dtype} ({count:,})" for dtype, count in facts.dtypes.items())),
        ("layers", str(facts.layers)),
        ("hidden size", str(facts.hidden)),
        ("vocabulary", f"{facts.vocabulary} rows{', tied to the output layer' if facts.tied else ''}"),
        ("shards", f"{facts.shards} {'file' if facts.shards == 1 else 'files'}, {facts.nbytes:,} bytes"),
    ]
    if facts.iteration is not None:
        rows.append(("iteration", facts.iteration))
        rows.append(("optimizer state", "yes" if facts.optimizer_state else "no"))
    tokenizer = facts.tokenizer
    if tokenizer is None:
        return [*rows, ("tokenizer", "none")]
    template = "with" if tokenizer.chat_template else "without"
    size = f"{tokenizer.size} tokens" if tokenizer.size is not None else "size unknown"
    return [*rows, ("tokenizer", f"{tokenizer.name or 'unnamed'}, {size}, {template} chat template")]


def _prepared_rows(facts: PreparedFacts) -> list[tuple[str, str]]:
    splits = ", ".join(f"{name} ({rows:,})" for name, rows in facts.splits.items())
    size = f"{facts.files} {'file' if facts.files == 1 else 'files'}, {facts.nbytes:,} bytes"
    return [("rows", f"{facts.rows:,}"), ("splits", splits), ("kind", facts.kind), ("shards", size)]


def _data_rows(facts: DataFacts) -> list[tuple[str, str]]:
    size = f"{facts.files} {'file' if facts.files == 1 else 'files'}, {facts.nbytes:,} bytes"
    return [("rows", f"{facts.rows:,}"), ("shards", size), ("fields", ", ".join(facts.fields))]


def _result_rows(facts: ResultFacts) -> list[tuple[str, str]]:
    import json

    return [(name, json.dumps(value, ensure_ascii=False)) for name, value in facts.metrics.items()]


def _record_rows(record: dict[str, Any] | None) -> list[tuple[str, str]]:
    if record is None:
        return [("made by", "not recorded")]
    rows = [
        ("made by", f"{record.get('step')} on {record.get('created')}"),
        ("fingerprint", str(record.get("fingerprint"))),
    ]
    made_from = (f"{one.get('type')} {one.get('path')} {one.get('fingerprint')}" for one in record.get("inputs", []))
    return [*rows, *(("made from", one) for one in made_from)]
