"""A process of its own for functions that may hang, crash or grow: ``python -m nemotron.rewards.worker``.

Lines of JSON on stdin and stdout. First a ``RewardConfig`` comes in, and ``{"ready": true}`` or ``{"error", "hint"}``
goes out; then for each ``{"index", "row", "response", "ended", "timeout_s"}`` a ``{"value"}`` or ``{"missing"}``. It
ends with its stdin, and by the kernel's alarm when a request takes twice its time, so that it never outlives its parent
for long.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, TextIO

from nemotron.config.schema.rewards import RewardConfig
from nemotron.errors import NemotronError
from nemotron.processes.parent import tell
from nemotron.rewards.functions import CheckedFunction, build_function
from nemotron.rewards.types import VerifierError
from nemotron.rewards.user import User, check_call, import_function

MEMORY_BYTES = 4 << 30
"""Address space of a worker without functions of the user's; sympy can be asked for numbers that fill any memory."""
_LONGEST_REASON = 200
_IMPORTED_LATE = {
    "json_schema": ("jsonschema.validators", "referencing.exceptions"),
    "math": ("math_verify",),
}
"""What functions import with their first answer, by their name."""


def main(arguments: Sequence[str] = ()) -> int:
    """Serve until stdin ends; or ``--check module:function search_path option ...``: say on stdout why it cannot
    be imported, or called with these options."""
    if arguments:
        return _check(*arguments[1:])
    # Whatever a function prints must not get between the lines of the protocol.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        sys.setrecursionlimit(4000)
        try:
            functions = _build(RewardConfig.model_validate_json(sys.stdin.readline()))
        except NemotronError as error:
            _tell(out, {"error": error.message, "hint": error.hint})
            return 1
        _tell(out, {"ready": True})
        for line in sys.stdin:
            request = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, 2 * request["timeout_s"] + 1)
            answer = _answer(functions[request["index"]], request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _tell(out, answer)
    return 0


def _check(path: str, search_path: str, *options: str) -> int:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            check_call(path, import_function(path, search_path), options)
        except NemotronError as error:
            out.write(f"{error.message}\n{error.hint or ''}".rstrip() + "\n")
            return 1
    return 0


def _build(config: RewardConfig) -> list[CheckedFunction]:
    functions = [build_function(function) for function in config.functions]
    # The time of the first answer is for the answer.
    for name in {name for function in config.functions for name in _IMPORTED_LATE.get(function.name, ())}:
        with suppress(ImportError):  # who asks for it will say so
            import_module(name)
    own = [function for function in functions if isinstance(function, User)]
    for function in own:
        function.load()
    if not own:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or hard > MEMORY_BYTES:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))
    return functions


def _answer(function: CheckedFunction, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"value": function(request["row"], request["response"], ended=request["ended"])}
    except VerifierError as error:
        return {"missing": str(error)}
    except NemotronError as error:
        return {"missing": error.message}
    except MemoryError:
        return {"missing": "ran out of memory"}
    except Exception as error:  # noqa: BLE001 - whatever a function or its library raises means "no value"
        reason = f"raised {type(error).__name__}: {error}".splitlines()[0]
        return {"missing": reason[:_LONGEST_REASON]}


def _tell(out: TextIO, message: Mapping[str, Any]) -> None:
    tell(out, json.dumps(message))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
