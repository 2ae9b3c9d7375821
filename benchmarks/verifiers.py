"""Answers per second of the reward functions, each alone, with right and wrong answers in turn.

    python benchmarks/verifiers.py [--answers 200] [--workers 2]

``code`` runs one test per answer in the strongest sandbox that this machine has; ``startup`` is the time until the
first answers are scored (worker processes and their imports).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from nemotron.config.schema.rewards import RewardConfig
from nemotron.rewards import build_rewards
from nemotron.sandbox.box import containment

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str]]] = {
    # name: options, row, a right and a wrong answer
    "exact": ({}, {"answer": "Rome"}, ("rome", "Paris")),
    "choice": ({}, {"answer": "B"}, ("Answer: B", "Answer: C")),
    "format": ({"tags": ["think", "answer"]}, {}, ("<think>a</think><answer>b</answer>", "b")),
    "instructions": ({}, {"instruction_id_list": ["punctuation:no_comma"]}, ("a b", "a, b")),
    "regex": ({"pattern": r"\d+ apples$"}, {}, ("12 apples", "12 pears")),
    "json_schema": ({"schema_value": {"type": "array", "minItems": 2}}, {}, ("[1, 2]", "[1]")),
    "math": ({}, {"answer": "\\frac{1}{2}"}, ("So it is \\boxed{0.5}", "So it is \\boxed{\\sqrt{3}}")),
    "code": (
        {},
        {"tests": {"inputs": ["4\n"], "outputs": ["8\n"]}},
        ("```python\nprint(2 * int(input()))\n```", "```python\nprint(int(input()))\n```"),
    ),
}


def measure(name: str, answers: int, workers: int) -> tuple[float, float]:
    """(seconds until the first score, answers per second after it)."""
    options, row, (right, wrong) = CASES[name]
    config = RewardConfig.model_validate({"functions": [{"name": name, **options}], "workers": workers})
    begun = time.perf_counter()
    with build_rewards(config) as scorer:
        scorer.score_many([(row, right, True)] * workers)
        startup = time.perf_counter() - begun
        begun = time.perf_counter()
        scores = scorer.score_many([(row, wrong if index % 2 else right, True) for index in range(answers)])
        seconds = time.perf_counter() - begun
    expected = [0.0 if index % 2 else 1.0 for index in range(answers)]
    if [score.reward for score in scores] != expected:
        raise SystemExit(f"{name} scored wrongly: {next(iter(scores)).missing}")
    return startup, answers / seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=CASES, nargs="*", default=list(CASES))
    options = parser.parse_args()
    print(f"sandbox: {containment()[0]}, workers: {options.workers}, answers: {options.answers}")
    print(f"{'function':<14} {'startup s':>10} {'answers/s':>10}")
    for name in options.only:
        startup, rate = measure(name, options.answers, options.workers)
        print(f"{name:<14} {startup:>10.2f} {rate:>10.0f}")


if __name__ == "__main__":
    main()
