"""What the comparisons with TRL share: TRL's venv, one process per side and round, a table with ratios."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models import random_model
from work import WORDS, Asked

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / "build" / "bench"
TRL_REQUIREMENTS = (["torch==2.13.0"], ["trl==1.16.0", "peft"])  # torch first: the CPU build on Python 3.11
QUIET = 0.10
Side = tuple[str, str, str]
"""``ours`` or ``trl``, the precision, and a variant that the side's script knows (may be empty)."""


@dataclass
class Measured:
    """Of one side, over its processes."""

    steps: list[dict[str, float]] = field(default_factory=list)
    peaks_mb: list[float] = field(default_factory=list)
    tokens: set[int] = field(default_factory=set)

    def median(self, name: str) -> float:
        """Of a figure of the steps."""
        return statistics.median(step[name] for step in self.steps)


def trl_python(cache: Path) -> Path:
    """The interpreter of TRL's venv, made when it is not there."""
    python = cache / "trl-venv" / "bin" / "python"
    ready = cache / "trl-venv" / ".ready"
    if not ready.exists():
        print(f"installing {', '.join(TRL_REQUIREMENTS[1])} into {python.parents[1]}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        for requirements in TRL_REQUIREMENTS:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        ready.touch()
    return python


def run_side(name: str, who: str, python: Path, asked: Asked) -> dict[str, object]:
    """One process of one side, the script ``<name>_<who>.py``; the JSON line it prints."""
    from nemotron.rl.threads import thread_environment

    # The same environment for both, so that TRL profits from the thread settings too.
    environment = {**os.environ, **thread_environment(asked.threads), "HF_HUB_OFFLINE": "1"}
    command = [str(python), str(HERE / f"{name}_{who}.py"), asked.written()]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
    found: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def in_turn(
    name: str, sides: Sequence[Side], pythons: dict[str, Path], rounds: int, asked: Asked
) -> dict[Side, Measured]:
    """All sides of one model, in turn. Ends the program where their work differs by more than 1 %."""
    found = {side: Measured() for side in sides}
    for number in range(rounds):
        for who, precision, variant in sides:
            work = Asked(**{**vars(asked), "precision": precision, "variant": variant})
            said = run_side(name, who, pythons[who], work)
            measured = found[who, precision, variant]
            measured.steps += said["steps"]  # type: ignore[arg-type]
            measured.peaks_mb.append(said["peak_mb"])  # type: ignore[arg-type]
            measured.tokens.add(said["tokens"])  # type: ignore[arg-type]
            walls = [round(step["wall_s"], 3) for step in said["steps"]]  # type: ignore[attr-defined]
            what = f"{Path(asked.model).name} round {number + 1} {who} {precision} {variant}"
            print(f"{what}: {walls}, {said['peak_mb']:.0f} MB", file=sys.stderr)
    tokens = sorted(set().union(*(one.tokens for one in found.values())))
    if tokens[-1] > 1.01 * tokens[0]:
        raise SystemExit(f"the sides did not do the same work: {tokens} tokens")
    if len(tokens) > 1:
        print(f"the sides count {tokens[0]:,} and {tokens[-1]:,} tokens", file=sys.stderr)
    return found


def report(model: str, what: str, found: dict[Side, Measured]) -> None:
    """Print one model's table, and TRL's time and memory over ours: equal precision (TRL's best variant), and best
    over best."""
    print(f"\n{model}: {what}, seconds of wall time (median, quartiles) and of CPU time (median), peak memory")
    print(f"{'side':<6}{'precision':<11}{'variant':<12}{'wall':>8}{'p25':>8}{'p75':>8}{'cpu':>8}{'MB':>8}{'others':>8}")
    figures: dict[str, dict[Side, float]] = {"wall time": {}, "CPU time": {}, "memory": {}}
    for side, measured in found.items():
        p25, wall, p75 = statistics.quantiles([step["wall_s"] for step in measured.steps], n=4, method="inclusive")
        cpu, others, peak = measured.median("cpu_s"), measured.median("others"), max(measured.peaks_mb)
        for values, value in zip(figures.values(), (wall, cpu, peak), strict=True):
            values[side] = value
        mark = "  not quiet" if others > QUIET else ""
        numbers = "".join(f"{value:>8.3f}" for value in (wall, p25, p75, cpu))
        print(f"{side[0]:<6}{side[1]:<11}{side[2]:<12}{numbers}{peak:>8.0f}{others:>8.0%}{mark}")
    for name, values in figures.items():

        def best(who: str, precision: str | None = None, values: dict[Side, float] = values) -> float:
            return min(v for (w, p, _), v in values.items() if w == who and precision in (None, p))

        precisions = sorted({side[1] for side in values}, reverse=True)
        equal = [f"{best('trl', p) / best('ours', p):.2f} at {p}" for p in precisions]
        overall = f", {best('trl') / best('ours'):.2f} best over best" if len(precisions) > 1 else ""
        print(f"{model} TRL's {name} over ours: {', '.join(equal)}{overall}")


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: quartiles are those of at least 2")
    return int(text)


def options(description: str) -> argparse.ArgumentParser:
    """The options of every comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=_several, default=4, help="measured steps per process, at least 2")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--cache", type=Path, default=CACHE, help="TRL's venv and the models")
    parser.add_argument("--trl-python", type=Path, help="an interpreter that has TRL, instead of the venv in the cache")
    return parser


def interpreters(args: argparse.Namespace) -> dict[str, Path]:
    """Of both sides."""
    return {"ours": Path(sys.executable), "trl": args.trl_python or trl_python(args.cache.resolve())}


def compare(name: str, what: str, sides: Sequence[Side]) -> None:
    """Set up, run the sides in turn, report. ``name`` begins the scripts' names, ``what`` is what a step does."""
    parser = options(f"{what}, side by side with TRL")
    parser.add_argument("--models", nargs="+", choices=["m1", "m15"], default=["m1", "m15"])
    args = parser.parse_args()
    pythons = interpreters(args)
    for model in args.models:
        folder = args.cache.resolve() / model
        if not (folder / WORDS).exists():
            random_model(folder, model)
        found = in_turn(name, sides, pythons, args.rounds, Asked(str(folder), "", args.steps, args.threads))
        report(model, what, found)
