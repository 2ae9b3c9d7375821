"""Train the tiny world's generative judge: it reads two answers and writes a JSON verdict.

    python scripts/tiny_world/train_judge.py [--steps 1500] [--out src/nemotron/assets/tiny_world]

Starts from the policy's weights, which already find the slots of a request. Many of the answers it learns from were
sampled from the policy, the others are scripted or damaged; every comparison is shown in both orders. All requests use
slot pairs of the training split; validation requests are only watched, held-out ones are not touched.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from evaluate import answers_to, judge_numbers
from judging import Comparison, draw_comparison, example
from make_data import ASSETS, SEED, SHARES, requests_of
from scaffold import Marker, Marks, Scaffold
from training import Example, fit, load, run_batch, save
from transformers import LlamaForCausalLM
from world import Request, draw_request, split_combos

PAIRS = 24
"""Comparisons per batch; both orders make it 48 rows."""
POOL = 8
"""Batches drawn at once and cut by length, so that little of a batch is padding."""
SAMPLED_REQUESTS = 2500
TEMPERATURES = (1.0, 1.0, 1.2)


class Comparisons:
    """An endless supply of training batches."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: Any) -> None:
        self._tokenizer, self._marker = tokenizer, Marker(tokenizer)
        self._rng = random.Random(f"{SEED} judge")
        self._combos = split_combos(SEED, SHARES)[0]
        self._asked = [draw_request(self._rng, self._combos) for _ in range(SAMPLED_REQUESTS)]
        columns = [answers_to(model, tokenizer, self._asked, temperature=t) for t in TEMPERATURES]
        self._samples = [[text for text, _ended in column] for column in zip(*columns, strict=True)]
        self._ready: list[list[tuple[Example, Marks]]] = []

    def next(self) -> tuple[list[Example], list[Marks]]:
        """One batch: what to read and write, and what the scaffold knows about it."""
        if not self._ready:
            rows = [row for _ in range(POOL * PAIRS) for row in self._both_orders()]
            rows.sort(key=lambda row: len(row[0].prompt))
            self._ready = [rows[at : at + 2 * PAIRS] for at in range(0, len(rows), 2 * PAIRS)]
            self._rng.shuffle(self._ready)
        batch = self._ready.pop()
        return [example for example, _ in batch], [marks for _, marks in batch]

    def _both_orders(self) -> list[tuple[Example, Marks]]:
        request, samples = self._request()
        pair = draw_comparison(self._rng, request, samples)
        swapped = Comparison(request, pair.response_2, pair.response_1, pair.principle, pair.system)
        rows = []
        for comparison in (pair, swapped):
            read = example(self._tokenizer, comparison)
            rows.append((read, self._marker.marks(comparison, read.prompt)))
        return rows

    def _request(self) -> tuple[Request, list[str]]:
        index = self._rng.randrange(2 * SAMPLED_REQUESTS)
        if index < SAMPLED_REQUESTS:
            return self._asked[index], self._samples[index]
        return draw_request(self._rng, self._combos), []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    model, tokenizer = load(arguments.out / "policy")
    started = time.monotonic()
    comparisons = Comparisons(model, tokenizer)
    print(f"sampled {len(TEMPERATURES) * SAMPLED_REQUESTS} answers of the policy, {time.monotonic() - started:.0f} s")
    scaffold = Scaffold(model.config.hidden_size)
    watch_rng = random.Random(f"{SEED} judge validation")
    watched = [draw_comparison(watch_rng, request, []) for request in requests_of("validation")]

    def loss_of(_done: float) -> torch.Tensor:
        batch, marks = comparisons.next()
        loss, hidden = run_batch(model, batch, tokenizer.pad_token_id)
        return loss + scaffold(hidden, marks)

    def report() -> str:
        numbers = judge_numbers(model, tokenizer, watched)
        return "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())

    fit(model, loss_of, report, steps=arguments.steps, lr=2e-3, extra=scaffold.parameters())
    save(model, tokenizer, arguments.out / "judge")


if __name__ == "__main__":
    main()
