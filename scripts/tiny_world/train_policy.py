"""Train the tiny world's policy: supervised, on a clerk who is mediocre on purpose.

    python scripts/tiny_world/train_policy.py [--steps 1200] [--out src/nemotron/assets/tiny_world]

Only slot-word pairs of the training split are seen. The first part of the training shows right answers only, so that
copying the slots is learned while the signal is clean; then the mixture takes over, which is what reinforcement
learning has to mend.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from evaluate import policy_numbers
from make_data import ASSETS, SEED, SHARES, requests_of
from training import Example, fit, new_model, run_batch, save
from transformers import AutoTokenizer
from world import Mixture, Request, draw_answer, draw_request, split_combos

ALWAYS = {"curt": 1.0, "friendly": 1.0, "angry": 1.0}
TEACHER = Mixture(1.0, 1.0, 0.5, {tone: 0.5 for tone in ALWAYS}, 1.0)
CLERK = Mixture(0.85, 0.75, 0.45, {"curt": 0.5, "friendly": 0.65, "angry": 0.4}, 0.95)
BATCH = 64
CLEAN_SHARE = 0.4
"""Share of the training that shows right answers only."""


def example(tokenizer: Any, request: Request, answer: str) -> Example:
    """The conversation as the policy reads it, and the answer with its end of turn."""
    messages = [{"role": "user", "content": request.text}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return Example(prompt, [*tokenizer.encode(answer), tokenizer.eos_token_id])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    rng = random.Random(f"{SEED} policy")
    folder = arguments.out / "policy"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    combos = split_combos(SEED, SHARES)[0]
    watched = requests_of("validation")
    model = new_model(tokenizer)
    print(f"{model.num_parameters()} parameters")

    def loss_of(done: float) -> torch.Tensor:
        mixture = TEACHER if done < CLEAN_SHARE else CLERK
        requests = [draw_request(rng, combos) for _ in range(BATCH)]
        batch = [example(tokenizer, r, draw_answer(rng, r, mixture)) for r in requests]
        return run_batch(model, batch, tokenizer.pad_token_id)[0]

    def report() -> str:
        shares = policy_numbers(model, tokenizer, watched, temperature=1.0)
        return "  ".join(f"{name} {share:.2f}" for name, share in shares.items())

    fit(model, loss_of, report, steps=arguments.steps, lr=2e-3)
    save(model, tokenizer, folder)


if __name__ == "__main__":
    main()
