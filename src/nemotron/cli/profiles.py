"""``nemotron profiles``: which places there are to run on, what a profile comes to, whether it would work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nemotron.cli.group import PATH, argument, as_json, group
from nemotron.cli.render import print_columns
from nemotron.errors import NemotronError, UsageError
from nemotron.outcome import print_error

app = group("List, show and check the profiles that `-r` and `-b` take.")

profile_name = argument("profile", metavar="PROFILE", help="A name of `nemotron profiles list`.")
new_folder = argument("folder", metavar="FOLDER", type=PATH, default=Path("profiles"), help="Where to put them.")


@app.command("list")
@as_json
def list_command(as_json: bool) -> None:
    """List profiles: of this project, of `env.toml`, and the shipped ones."""
    from nemotron.config.origins import shown
    from nemotron.profiles.load import SHIPPED, Profiles

    profiles = Profiles()
    rows: list[dict[str, Any]] = []
    for name in profiles.names():
        file = profiles.tables[name].file
        row: dict[str, Any] = {"name": name, "file": "shipped" if file.is_relative_to(SHIPPED) else shown(file)}
        try:
            found = profiles.get(name)
        except NemotronError as error:
            print_error(error, label="warning")
            rows.append({**row, "executor": None, "error": error.message})
            continue
        settings = found.settings
        row |= {"executor": settings.kind, "nodes": settings.nodes, "gpus_per_node": settings.gpus_per_node}
        rows.append({**row, "description": settings.description, "placeholders": found.unfilled})
    if as_json:
        _print_json(rows)
        return
    table = [
        (
            row["name"],
            row["executor"] or "broken",
            f"{row.get('nodes', '?')} x {row.get('gpus_per_node', '?')}",
            row["file"],
            (row.get("description") or "") + (" (to be filled in)" if row.get("placeholders") else ""),
        )
        for row in rows
    ]
    print_columns(table, header=("PROFILE", "EXECUTOR", "NODES x GPUS", "FILE", "WHAT IT IS"))


@app.command("show")
@profile_name
@as_json
def show_command(profile: str, as_json: bool) -> None:
    """Show what a profile comes to, with `extends` followed, and where each key was written. No secrets."""
    from nemotron.config.dump import dump_yaml
    from nemotron.profiles.load import Profiles

    found = Profiles().get(profile)
    written = {key: str(origin) for key, origin in found.origins.items() if key}
    if as_json:
        settings, unfilled = found.snapshot, found.unfilled
        _print_json({"name": found.name, "settings": settings, "origins": written, "placeholders": unfilled})
        return
    print(dump_yaml(found.snapshot, written).rstrip())
    for key in found.unfilled:
        print(f"placeholder: `{key}`, written in {found.origin(key)}", file=sys.stderr)


@app.command("check")
@profile_name
def check_command(profile: str) -> None:
    """Verify what can be verified from here, over ssh or HTTP, without submitting anything."""
    from nemotron.errors import ConfigError
    from nemotron.executors.launch import kind_of
    from nemotron.executors.registry import executor
    from nemotron.profiles.load import Profiles
    from nemotron.suggest import listed

    found = Profiles().get(profile)
    if found.unfilled:
        keys = listed(found.unfilled)
        raise ConfigError(
            f"the profile `{profile}` is not filled in: {keys}",
            hint="`nemotron profiles init` copies the shipped profiles here; fill in what stands in <>",
            origin=found.origin(found.unfilled[0]),
        )
    for what, answer in executor(kind_of(found)).check(found):
        print(f"{what}: {answer}")


@app.command("init")
@new_folder
def init_command(folder: Path) -> None:
    """Copy the shipped profile files into a folder of yours, to fill them in. Files that exist are left alone."""
    from nemotron.disk.atomic import write_atomic
    from nemotron.disk.faults import output_errors
    from nemotron.profiles.load import SHIPPED

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`{folder}` is a file")
    place = "name a folder that you may write to"
    with output_errors(folder, place=place, after=""):
        folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(SHIPPED.glob("*.toml")):
        target = folder / file.name
        if target.exists():
            print(f"{target}: is there already, left alone", file=sys.stderr)
            continue
        write_atomic(target, file.read_bytes(), place=place, after="")
        print(target)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
