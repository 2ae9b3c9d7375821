"""The environment of a job: what the profile sets, what it takes along, secrets that the job names, and the code."""

from __future__ import annotations

import os
from collections.abc import Mapping

from nemotron import __version__, snapshot
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profile


def job_environment(
    profile: Profile, job: CompiledJob, code_dir: str | None, secrets: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, str]:
    """Variables with their values; the result holds secrets.

    Args:
        code_dir: the folder that Python imports the shipped code from; None where the code is installed there.
        secrets: values of the job, by config key; those that a variable carries go along under its name.
    """
    settings = profile.settings
    given = {name: environ[name] for name in settings.pass_env if name in environ}
    carried = {
        name: value
        for key, name in job.secret_variables.items()
        if (value := secrets.get(key) or environ.get(name)) is not None
    }
    found = {**given, **carried, **settings.env_vars}
    return _sent(profile, {**found, **_own(found, code_dir)})


def shown_environment(profile: Profile, job: CompiledJob, code_dir: str | None) -> dict[str, str]:
    """The same for people: a value that comes from this environment is shown as where it comes from."""
    settings = profile.settings
    shown = {name: f"<{name} of this environment>" for name in settings.pass_env if name in os.environ}
    shown |= {name: f"<{name} of this environment>" for name in job.secret_variables.values() if name in os.environ}
    shown |= settings.env_vars
    shown |= {name: f"<{variable} of this environment>" for name, variable in profile.from_environment.items()}
    return _sent(profile, {**shown, **_own(shown, code_dir)})


def _sent(profile: Profile, variables: dict[str, str]) -> dict[str, str]:
    """Without those that the place has of its own under `secrets`: what they hold here stays here."""
    kept = getattr(profile.settings, "secrets", ())
    return {name: value for name, value in variables.items() if name not in kept}


def _own(given: Mapping[str, str], code_dir: str | None) -> dict[str, str]:
    own = {snapshot.VARIABLE: __version__ if code_dir is None else snapshot.digest(), "PYTHONUNBUFFERED": "1"}
    if code_dir is not None:
        own["PYTHONPATH"] = ":".join(filter(None, [code_dir, given.get("PYTHONPATH", "")]))
    return own
