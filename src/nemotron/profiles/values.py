"""The values of a profile's keys: each with what makes it one, said in the user's words."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from nemotron.config.schema.fields import of_form

PLACEHOLDER = re.compile(r"<[^<>]*>")
"""A value that a user has to fill in: ``<your account>``."""


def _one_line(value: str) -> str:
    if re.search(r"[\x00-\x1f\x7f\u2028\u2029]", value):
        raise PydanticCustomError("one_line", "should be one line without control characters")
    return value


def _destination(value: str) -> str:
    # ssh takes what begins so for one of its options, and some of those are commands.
    if value.startswith("-"):
        raise PydanticCustomError("destination", "cannot begin with `-`: ssh would take it for an option")
    return _one_line(value)


def _absolute(value: str) -> str:
    if not PLACEHOLDER.search(value) and not value.startswith("/"):
        raise PydanticCustomError("absolute", "should be an absolute path: a cluster does not know this folder")
    return _one_line(value)


def _variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise PydanticCustomError("variable", "should be the name of an environment variable")
    return value


def _mount(value: str) -> str:
    if PLACEHOLDER.search(value):
        return _one_line(value)
    source, _, rest = value.partition(":")
    target, _, flags = rest.partition(":")
    if not source.startswith("/") or (rest and not target.startswith("/")):
        raise PydanticCustomError("mount", "should be `/there:/in/the/container`, both absolute")
    if "," in value or not re.fullmatch(r"[a-z+=_-]*", flags):
        # Mounts are handed on in one word, with commas between them.
        raise PydanticCustomError("mount", "should be one mount, `/there:/in/the/container`, and perhaps `:ro`")
    return _one_line(value)


def _sbatch_option(value: str) -> str:
    found = re.fullmatch(r"(?:--)?([a-z][a-z0-9-]*)(=.*)?", _one_line(value))
    if found is None:
        raise PydanticCustomError("sbatch_option", "should be one option of sbatch, as `--name=value` or `--name`")
    if found[1] in _SET_ALREADY:
        key = _SET_ALREADY[found[1]]
        text = f"`--{found[1]}` is set already" + (f": write the profile's `{key}`" if key else ", for every job")
        raise PydanticCustomError("sbatch_option", text)
    return value


def _no_password(value: str) -> str:
    # It would stand in the handle of every run, and in what is said of the cluster.
    if re.search(r"://[^/?#]*@", value):
        raise PydanticCustomError("no_password", "should hold no user or password: a variable holds the token")
    return value


def _http(what: str) -> AfterValidator:
    """An address, said in the words of whose it is."""

    def check(value: str) -> str:
        if not PLACEHOLDER.search(value) and not re.match(r"https?://[^/]", value):
            raise PydanticCustomError("address", what)
        return value

    return AfterValidator(check)


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise PydanticCustomError("nul", "cannot hold a NUL character: environment variables end there")
    return value


_SET_ALREADY = {
    **dict.fromkeys(("array", "chdir", "error", "export", "job-name", "open-mode", "output", "parsable", "wrap"), ""),
    **{
        name: name for name in ("account", "comment", "constraint", "dependency", "exclude", "exclusive", "gres", "mem")
    },
    **{name: name for name in ("nodelist", "nodes", "partition", "qos", "requeue", "reservation", "time")},
    **{"cpus-per-task": "cpus_per_task", "gpus-per-node": "gpus_per_node", "no-requeue": "requeue"},
    **{"ntasks-per-node": "", "signal": "signal_before_end_s"},
}
"""Options of sbatch that a script of ours sets -> the key of a profile that says what they are."""
Line = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
"""Text that goes into a script or a header: no line breaks."""
Destination = Annotated[str, Field(min_length=1), AfterValidator(_destination)]
"""A machine, or a user on it, as ssh takes it."""
Address = Annotated[Line, AfterValidator(_no_password), _http("should be an address: `https://...`")]
"""Of a service's API."""
Dashboard = Annotated[
    Line, AfterValidator(_no_password), _http("should be the address of the dashboard: `http://head:8265`")
]
"""Address of a Ray cluster's API."""
Folder = Annotated[str, AfterValidator(_absolute)]
"""An absolute path on the cluster."""
Variable = Annotated[str, AfterValidator(_variable)]
Value = Annotated[str, AfterValidator(_no_nul)]
Mount = Annotated[str, AfterValidator(_mount)]
SbatchOption = Annotated[str, AfterValidator(_sbatch_option)]
Time = Annotated[
    str,
    of_form(
        r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$|^<.*>$|^UNLIMITED$",
        "minutes, `MM:SS`, `HH:MM:SS`, `D-HH:MM:SS` or `UNLIMITED`, as `04:00:00` for four hours",
    ),
]
"""Slurm's own form: ``minutes``, ``MM:SS``, ``HH:MM:SS``, ``D-HH:MM:SS``."""
