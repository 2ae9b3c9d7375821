"""``nemotron doctor``: what this machine, or the place of a profile, has and lacks, in one page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from nemotron.cli.group import HELP, Command, argument, as_json
from nemotron.cli.render import print_columns
from nemotron.errors import NotAvailableError

if TYPE_CHECKING:
    from nemotron.executors.doctor import Check


@click.command(cls=Command, context_settings=HELP)
@argument(
    "profile",
    metavar="[PROFILE]",
    required=False,
    help="A name of `nemotron profiles list`; without: this machine.",
)
@as_json
def app(profile: str | None, as_json: bool) -> int:
    """Say what a place has and lacks for each engine, and how to get it. Exit code 10: nothing can run there."""
    from nemotron.executors import doctor as place
    from nemotron.profiles.load import Profiles

    if profile is None:
        checks = place.here(os.environ, place.runs_dir_of(os.environ))
        able = place.engines(checks)
        fine = any(able.values())
    else:
        checks = place.there(Profiles().get(profile), os.environ)
        # What only one engine needs leaves the other one.
        able, fine = {}, all(check.state != "lacks" or check.needed_by for check in checks)
        fine = fine and any(place.engines(checks).values())
    if as_json:
        _print_json(profile, checks, able)
    else:
        _print(checks, able)
    return 0 if fine else NotAvailableError.exit_code


def _print(checks: list[Check], able: dict[str, bool]) -> None:
    rows = [(check.what, check.state, check.found) for check in checks]
    rows += [
        (f"engine {name}", "ok" if runs else "lacks", "can run here" if runs else "cannot run here")
        for name, runs in able.items()
    ]
    print_columns(rows, header=("CHECK", "STATE", "WHAT THERE IS"))
    fixes = [(check.what, check.fix) for check in checks if check.fix]
    if fixes:
        print()
        print_columns(fixes, header=("WHAT IS MISSING", "HOW TO GET IT"))


def _print_json(profile: str | None, checks: list[Check], able: dict[str, bool]) -> None:
    import json
    from dataclasses import asdict

    found: dict[str, Any] = {"place": profile or "here", "checks": [asdict(check) for check in checks], "engines": able}
    print(json.dumps(found, indent=2, ensure_ascii=False))
