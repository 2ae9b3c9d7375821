"""What the comparisons with TRL share: TRL's venv, one process per side and round, a table with ratios."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRL_REQUIREMENTS = (["torch==2.13.0"], ["trl==1.16.0"])  # torch first: this version is the CPU build on Python 3.11
QUIET = 0.10
Side = tuple[str, str, str]
"""``ours`` or ``trl``, the precision, and a variant that the side's script knows (may be empty)."""


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


def run_side(name: str, side: Side, python: Path, model: Path, steps: int, threads: int) -> dict[str, object]:
    """One process of one side, the script ``<name>_<side>.py``; the JSON line it prints."""
    from nemotron.rl.threads import thread_environment

    # The same environment for both, so that TRL profits from the thread settings too.
    environment = {**os.environ, **thread_environment(threads), "HF_HUB_OFFLINE": "1"}
    who, precision, variant = side
    command = [str(python), str(HERE / f"{name}_{who}.py"), str(model), precision, str(steps), str(threads), variant]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
    found: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def report(model: str, what: str, steps: dict[Side, list[dict[str, float]]]) -> None:
    """Print one model's table, and TRL's time over ours: equal precision (TRL's best variant), best over best."""
    print(f"\n{model}: {what}, seconds of wall time (median, quartiles) and of CPU time (median)")
    print(f"{'side':<6}{'precision':<11}{'variant':<12}{'wall':>8}{'p25':>8}{'p75':>8}{'cpu':>8}{'others':>8}")
    medians: dict[str, dict[Side, float]] = {"wall": {}, "cpu": {}}
    for side, found in steps.items():
        p25, wall, p75 = statistics.quantiles([step["wall_s"] for step in found], n=4, method="inclusive")
        medians["wall"][side] = wall
        medians["cpu"][side] = statistics.median(step["cpu_s"] for step in found)
        others = statistics.median(step["others"] for step in found)
        mark = "  not quiet" if others > QUIET else ""
        numbers = "".join(f"{value:>8.3f}" for value in (wall, p25, p75, medians["cpu"][side]))
        print(f"{side[0]:<6}{side[1]:<11}{side[2]:<12}{numbers}{others:>8.0%}{mark}")
    for name, seconds in medians.items():

        def best(who: str, precision: str | None = None, seconds: dict[Side, float] = seconds) -> float:
            return min(v for (w, p, _), v in seconds.items() if w == who and precision in (None, p))

        precisions = sorted({side[1] for side in seconds}, reverse=True)
        equal = [f"{best('trl', p) / best('ours', p):.2f} at {p}" for p in precisions]
        print(
            f"{model} TRL's {name} time over ours: {', '.join(equal)}, {best('trl') / best('ours'):.2f} best over best"
        )


def arguments(description: str) -> argparse.Namespace:
    """The options of every comparison."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="+", choices=["m1", "m15"], default=["m1", "m15"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="measured steps per process, at least 2")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "build" / "bench", help="TRL's venv and the models")
    parser.add_argument("--trl-python", type=Path, help="an interpreter that has TRL, instead of the venv in the cache")
    return parser.parse_args()


def compare(name: str, what: str, sides: Sequence[Side]) -> None:
    """Set up, run the sides in turn, report. ``name`` begins the scripts' names, ``what`` is what a step does."""
    args = arguments(f"{what}, side by side with TRL")
    pythons = {"ours": Path(sys.executable), "trl": args.trl_python or trl_python(args.cache.resolve())}
    sys.path.insert(0, str(HERE))
    from grpo_work import make_model

    for model in args.models:
        folder = args.cache.resolve() / model
        if not (folder / "model.safetensors").exists():
            make_model(folder, model)
        steps: dict[Side, list[dict[str, float]]] = {side: [] for side in sides}
        for number in range(args.rounds):
            for side in sides:
                found = run_side(name, side, pythons[side[0]], folder, args.steps, args.threads)
                steps[side] += found["steps"]  # type: ignore[operator]
                walls = [round(step["wall_s"], 3) for step in found["steps"]]  # type: ignore[attr-defined]
                print(f"{model} round {number + 1} {' '.join(side)}: {walls}", file=sys.stderr)
        report(model, what, steps)
