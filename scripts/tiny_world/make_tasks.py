"""Write the tasks of the tiny world with checkable answers (train, validation, held-out). Same seed, same bytes.

python scripts/tiny_world/make_tasks.py [--out src/nemotron/assets/tiny_world]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from make_data import ASSETS, SEED
from tasks import Choice, Sum, draw_choice, draw_sum, split_sums

SHARES = (0.08, 0.15)
"""Share of the sums that only validation, or only held-out, uses."""
SIZES = {"train": 1200, "validation": 100, "heldout": 200}
CHOICES = {"train": 200, "validation": 40, "heldout": 40}


def sums_of(split: str) -> list[Sum]:
    """The sums of a split, all different; no sum is in two splits."""
    pairs = split_sums(SEED, SHARES)[list(SIZES).index(split)]
    rng = random.Random(f"{SEED} sums {split}")
    drawn: dict[str, Sum] = {}
    while len(drawn) < SIZES[split]:
        task = draw_sum(rng, pairs)
        drawn.setdefault(task.prompt, task)
    return list(drawn.values())


def choices() -> dict[str, list[Choice]]:
    """The questions of every split, all different."""
    rng = random.Random(f"{SEED} choices")
    drawn: dict[str, Choice] = {}
    while len(drawn) < sum(CHOICES.values()):
        task = draw_choice(rng)
        drawn.setdefault(task.prompt, task)
    rest = iter(drawn.values())
    return {split: [next(rest) for _ in range(size)] for split, size in CHOICES.items()}


def data_row(name: str, number: int, task: Sum | Choice) -> dict[str, Any]:
    """A NeMo-Gym row."""
    return {
        "responses_create_params": {"input": [{"role": "user", "content": task.prompt}]},
        "uuid": f"{name}-{number:04d}",
        "dataset": "tiny_world",
        **task.row(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    out: Path = parser.parse_args().out
    questions = choices()
    for split in SIZES:
        for name, tasks in (("tasks", sums_of(split)), ("choices", questions[split])):
            rows = [data_row(f"{name}-{split}", number, task) for number, task in enumerate(tasks)]
            path = out / "data" / f"{name}_{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
