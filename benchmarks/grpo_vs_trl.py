"""GRPO steps side by side with TRL's GRPOTrainer: equal model, threads and work, runs alternating; prints ratios.

    python benchmarks/grpo_vs_trl.py [--models m1 m15] [--threads 2] [--steps 4] [--rounds 3]

Work of a step: 16 prompts x 8 generations, 33 prompt and exactly 64 new tokens, KL to a reference, a reward that
costs nothing, one optimizer step. TRL runs in a venv of its own, made on the first run; gradient checkpointing is off
on both sides (its best setting). A step counts from the end of the step before, the first one of each process is
dropped, the median over all rounds is reported. Steps during which other processes took more than a tenth of the
machine are marked: timings beside them mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRL_REQUIREMENTS = (["torch==2.13.0"], ["trl==1.16.0"])  # torch first: this version is the CPU build on Python 3.11
SIDES = (("ours", "float32"), ("trl", "float32"), ("ours", "bfloat16"), ("trl", "bfloat16"))
QUIET = 0.10


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


def run_side(side: str, python: Path, model: Path, precision: str, steps: int, threads: int) -> dict[str, object]:
    """One process of one side; the JSON line it prints."""
    from nemotron.rl.threads import thread_environment

    # The same environment for both, so that TRL profits from the thread settings too.
    environment = {**os.environ, **thread_environment(threads), "HF_HUB_OFFLINE": "1"}
    command = [str(python), str(HERE / f"grpo_{side}.py"), str(model), precision, str(steps), str(threads)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
    found: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def report(model: str, steps: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    """Print one model's table and ratios."""
    print(f"\n{model}: a GRPO step, seconds of wall time (median, quartiles) and of CPU time (median)")
    print(f"{'side':<6}{'precision':<11}{'wall':>8}{'p25':>8}{'p75':>8}{'cpu':>8}{'others':>8}")
    wall: dict[tuple[str, str], float] = {}
    cpu: dict[tuple[str, str], float] = {}
    for key, found in steps.items():
        p25, wall[key], p75 = statistics.quantiles([step["wall_s"] for step in found], n=4, method="inclusive")
        cpu[key] = statistics.median(step["cpu_s"] for step in found)
        others = statistics.median(step["others"] for step in found)
        mark = "  not quiet" if others > QUIET else ""
        numbers = "".join(f"{value:>8.3f}" for value in (wall[key], p25, p75, cpu[key]))
        print(f"{key[0]:<6}{key[1]:<11}{numbers}{others:>8.0%}{mark}")
    for name, seconds in (("wall", wall), ("cpu", cpu)):
        equal = [f"{seconds['trl', p] / seconds['ours', p]:.2f} at {p}" for p in ("float32", "bfloat16")]
        best = {side: min(value for key, value in seconds.items() if key[0] == side) for side in ("trl", "ours")}
        print(
            f"{model} TRL's {name} time over ours: {', '.join(equal)}, {best['trl'] / best['ours']:.2f} best over best"
        )


def main() -> None:
    """Set up, run the sides in turn, report."""
    parser = argparse.ArgumentParser(description="GRPO steps side by side with TRL")
    parser.add_argument("--models", nargs="+", choices=["m1", "m15"], default=["m1", "m15"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="measured steps per process, at least 2")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "build" / "bench", help="TRL's venv and the models")
    parser.add_argument("--trl-python", type=Path, help="an interpreter that has TRL, instead of the venv in the cache")
    args = parser.parse_args()
    pythons = {"ours": Path(sys.executable), "trl": args.trl_python or trl_python(args.cache.resolve())}
    sys.path.insert(0, str(HERE))
    from grpo_work import make_model

    for model in args.models:
        folder = args.cache.resolve() / model
        if not (folder / "model.safetensors").exists():
            make_model(folder, model)
        steps: dict[tuple[str, str], list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(args.rounds):
            for side, precision in SIDES:
                found = run_side(side, pythons[side], folder, precision, args.steps, args.threads)
                steps[side, precision] += found["steps"]  # type: ignore[operator]
                phases = {k: round(v, 3) for k, v in found.get("phases", {}).items()}  # type: ignore[attr-defined]
                walls = [round(step["wall_s"], 3) for step in found["steps"]]  # type: ignore[attr-defined]
                print(f"{model} round {number + 1} {side} {precision}: {walls} {phases or ''}", file=sys.stderr)
        report(model, steps)


if __name__ == "__main__":
    main()
