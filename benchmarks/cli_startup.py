"""CPU seconds (user + system) of the light commands over those of `import typer, pydantic`: medians of N processes.

    python benchmarks/cli_startup.py [N]

Libraries that parse words and check values are the floor that the budgets were set with. The command itself parses with
click; typer comes with transformers. The processes alternate, so the ratios hold on a shared machine, where seconds do
not. Exits with 1 when a ratio is above its budget.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

# Where compiled modules may not be written, every start would measure the compiler.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
FLOOR = ["-c", "import typer, pydantic"]
COMMANDS = (
    (["--help"], 2.0),
    (["steps", "list"], 2.0),
    (["steps", "list", "--json"], 2.0),
    (["steps", "show", "rl/nemo_rl/rlhf"], None),
    (["steps", "run", "rl/nemo_rl/rlhf", "-c", "tiny", "--dry-run"], 8.0),
)


def cpu_seconds(words: list[str]) -> float:
    """CPU seconds of one Python process.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, check=True, env=ENVIRONMENT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Print a table; 1 when a command with a budget is above it."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    measured: list[list[float]] = [[] for _ in range(len(COMMANDS) + 1)]
    for words, _ in COMMANDS:
        cpu_seconds(["-m", "nemotron", *words])
    for _ in range(repeats):
        for found, words in zip(measured, [FLOOR, *(["-m", "nemotron", *words] for words, _ in COMMANDS)], strict=True):
            found.append(cpu_seconds(words))
    floor, *medians = map(statistics.median, measured)
    print(f"import typer, pydantic: {floor:.3f} s of CPU, the median of {repeats}")
    print(f"{'command':<62} {'CPU s':>7} {'ratio':>6} {'budget':>7}")
    over = False
    for (words, budget), seconds in zip(COMMANDS, medians, strict=True):
        ratio = seconds / floor
        over |= budget is not None and ratio > budget
        print(f"nemotron {' '.join(words):<53} {seconds:>7.3f} {ratio:>6.2f} {budget or '':>7}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
