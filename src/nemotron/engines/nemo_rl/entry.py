"""Runs an official script of NeMo-RL and tells what it measures: ``entry.py --metrics FILE SCRIPT [WORDS ...]``.

This file is copied beside the config and runs under NeMo-RL's own interpreter, so it needs nothing but Python. NeMo-RL
writes no file of metrics: its ``Logger.log_metrics`` is wrapped to append each call as one line of JSON. An exception
ends the process here and now, because after one the script's destructors may wait for ever.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Those of the values that are one number; what is not finite is null, as JSON has no word for it."""
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        if isinstance(value, (str, bytes, list, tuple, dict)):
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue  # a histogram, a table, a tensor of many numbers
        found[str(name)] = number if math.isfinite(number) else None
    return found


def told(log: Callable[..., Any], write: Callable[[bytes], Any]) -> Callable[..., Any]:
    """``Logger.log_metrics`` that also writes a line of what it is given."""

    @functools.wraps(log)
    def log_metrics(
        self: Any, metrics: Mapping[str, Any], step: int, prefix: str | None = "", *words: Any, **named: Any
    ) -> Any:
        line = {
            "step": int(step),
            "prefix": prefix or "",
            "finished": bool(named.get("step_finished") or (len(words) > 1 and words[1])),
            "metrics": numbers(metrics),
        }
        write(json.dumps(line).encode() + b"\n")
        return log(self, metrics, step, prefix, *words, **named)

    return log_metrics


def listen(path: str) -> None:
    """Wrap NeMo-RL's logger; where it has none any more, say so and go on: the script works without."""
    try:
        from nemo_rl.utils.logger import Logger  # type: ignore[import-not-found,import-untyped,unused-ignore]

        log = Logger.log_metrics
    except (ImportError, AttributeError) as error:
        print(f"nemotron: this NeMo-RL has no `Logger.log_metrics`, so no metrics come: {error}", file=sys.stderr)
        return
    # One write a line, past every buffer: who reads it sees whole lines, and sees them at once.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    Logger.log_metrics = told(log, functools.partial(os.write, file))


def main(words: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(prog="entry.py", description=__doc__)
    parser.add_argument("--metrics", metavar="FILE", required=True, help="where a line per call is appended")
    parser.add_argument("script", metavar="SCRIPT", help="the script, from the current folder")
    parser.add_argument("words", metavar="WORDS", nargs=argparse.REMAINDER, help="its own words")
    options = parser.parse_args(words)
    # As `python SCRIPT` in the root of the tree: the tree's modules, then the script's neighbours.
    sys.path[:0] = [os.getcwd(), os.path.dirname(os.path.abspath(options.script))]
    listen(options.metrics)
    sys.argv = [options.script, *options.words]
    try:
        runpy.run_path(options.script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it was, this process must not live on
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by returning: Ray, once shut down, is asked again by destructors and never answers.
    os._exit(code)
