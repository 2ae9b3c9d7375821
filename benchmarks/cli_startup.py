"""CPU seconds (user + system) of the light commands, median of N fresh processes, against the budget of 0.20 s.

    python benchmarks/cli_startup.py [N]

Wall time is noisy on a shared machine; CPU time is what start-up really costs.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

BUDGET_S = 0.20
COMMANDS = (
    (["--help"], BUDGET_S),
    (["steps", "list"], BUDGET_S),
    (["steps", "list", "--json"], BUDGET_S),
    (["steps", "show", "rl/nemo_rl/rlhf"], None),
    (["steps", "run", "rl/nemo_rl/rlhf", "-c", "tiny", "--dry-run"], None),
)


def cpu_seconds(words: list[str]) -> tuple[float, int]:
    """CPU seconds and exit code of one `nemotron` process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-m", "nemotron", *words], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result.returncode


def main() -> int:
    """Print a table; exit 1 when a command with a budget is over it."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    over = False
    print(f"{'command':<52} {'CPU s':>7} {'range':>15} {'budget':>7} {'exit':>5}")
    for words, budget in COMMANDS:
        runs = [cpu_seconds(words) for _ in range(repeats)]
        seconds = [run[0] for run in runs]
        median = statistics.median(seconds)
        over |= budget is not None and median > budget
        limit = "" if budget is None else f"{budget:.2f}"
        spread = f"{min(seconds):.3f}-{max(seconds):.3f}"
        print(f"nemotron {' '.join(words):<43} {median:>7.3f} {spread:>15} {limit:>7} {runs[-1][1]:>5}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
