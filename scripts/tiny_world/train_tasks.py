"""Train the policy that `rl/nemo_rl/rlvr -c tiny` starts from: it can add and follow a format, but is careless.

    python scripts/tiny_world/train_tasks.py [--steps 1200] [--measure] [--out src/nemotron/assets/tiny_world]

It starts from the clerk of `train_policy.py`, who knows the words already, and learns all sums by heart; the splits are
for reinforcement learning, which never sees the held-out ones. The first part of the training shows right answers only;
then carelessness takes over, which is what reinforcement learning has to mend.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

import torch
from make_data import ASSETS, SEED
from make_tasks import choices, sums_of
from tasks import Carelessness, Choice, Sum, draw_choice, draw_sum, split_sums
from training import Example, fit, generate, load, run_batch, save

CAREFUL = Carelessness(1.0, 1.0)
CARELESS = Carelessness(0.7, 0.45)
BATCH = 64
CLEAN_SHARE = 0.75
"""Share of the training that shows right answers only."""
CHOICE_SHARE = 0.2
LONGEST = 16


def example(tokenizer: Any, task: Sum | Choice, answer: str) -> Example:
    """The conversation as the policy reads it, and the answer with its end of turn."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": task.prompt}], add_generation_prompt=True)
    return Example(prompt["input_ids"], [*tokenizer.encode(answer), tokenizer.eos_token_id])


def shares(model: Any, tokenizer: Any, tasks: list[Any], *, temperature: float) -> dict[str, float]:
    """Shares of answers with the right result, the right format, and both."""
    prompts = [example(tokenizer, task, "").prompt for task in tasks]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    drawn = generate(model, prompts, pad=pad, end=end, limit=LONGEST, temperature=temperature)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in drawn]
    result = [right_result(task, text) for task, text in zip(tasks, texts, strict=True)]
    shape = [right_format(task, text) for task, text in zip(tasks, texts, strict=True)]
    both = [a and b for a, b in zip(result, shape, strict=True)]
    return {name: sum(x) / len(x) for name, x in (("result", result), ("format", shape), ("both", both))}


def right_result(task: Sum | Choice, text: str) -> bool:
    """Whether the last number or letter in ``text`` is the right one."""
    found = re.findall(r"-?\d+" if isinstance(task, Sum) else r"\b[A-D]\b", text)
    return bool(found) and found[-1] == task.row()["expected_answer"]


def right_format(task: Sum | Choice, text: str) -> bool:
    """Whether ``text`` looks as it should."""
    pattern = task.row()["format_pattern"] if isinstance(task, Sum) else r"^\\boxed\{[A-D]\}$"
    return re.search(pattern, text) is not None


def measure(folder: Path) -> None:
    """The shares of the model card, on held-out tasks."""
    model, tokenizer = load(folder)
    for name, tasks in (("sums", sums_of("heldout")), ("choices", choices()["heldout"])):
        print(name, "sampled", shares(model, tokenizer, tasks * 5, temperature=1.0))
        print(name, "greedy", shares(model, tokenizer, tasks, temperature=0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--measure", action="store_true", help="print the figures of the model card, train nothing")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    if arguments.measure:
        return measure(arguments.out / "policy_tasks")
    rng = random.Random(f"{SEED} tasks")
    model, tokenizer = load(ASSETS / "policy")
    [pairs] = split_sums(SEED, ())
    watched = {"sums": sums_of("validation"), "choices": choices()["validation"]}
    print(f"{model.num_parameters()} parameters")

    def loss_of(done: float) -> torch.Tensor:
        care = CAREFUL if done < CLEAN_SHARE else CARELESS
        tasks = [draw_choice(rng) if rng.random() < CHOICE_SHARE else draw_sum(rng, pairs) for _ in range(BATCH)]
        batch = [example(tokenizer, task, task.answer(rng, care)) for task in tasks]
        return run_batch(model, batch, tokenizer.pad_token_id)[0]

    def report() -> str:
        return "  ".join(
            f"{name} {temperature}: {shares(model, tokenizer, tasks, temperature=temperature)}"
            for name, tasks in watched.items()
            for temperature in (0.0, 1.0)
        )

    fit(model, loss_of, report, steps=arguments.steps, lr=1.5e-3)
    save(model, tokenizer, arguments.out / "policy_tasks")


if __name__ == "__main__":
    main()
