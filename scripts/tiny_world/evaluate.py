"""Measure the shipped models: the policy's baseline on held-out requests, the judge's agreement with the script.

python scripts/tiny_world/evaluate.py [--assets src/nemotron/assets/tiny_world]
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from judging import Comparison, draw_comparison
from training import ASSETS, generate, load, read_rows
from transformers import LlamaForCausalLM
from world import Request

from nemotron.rewards.tiny_world import score

MAX_ANSWER_TOKENS = 28
MAX_VERDICT_TOKENS = 16


def answers_to(
    model: LlamaForCausalLM, tokenizer: Any, requests: list[Request], *, temperature: float
) -> list[tuple[str, bool]]:
    """One answer of the policy to each request, and whether it ended by itself."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": r.text}], add_generation_prompt=True)["input_ids"]
        for r in requests
    ]
    end = tokenizer.eos_token_id
    drawn = generate(
        model, prompts, pad=tokenizer.pad_token_id, end=end, limit=MAX_ANSWER_TOKENS, temperature=temperature
    )
    return [(tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == end) for ids in drawn]


def policy_numbers(
    model: LlamaForCausalLM, tokenizer: Any, requests: list[Request], *, temperature: float
) -> dict[str, float]:
    """Share of answers with each aspect right."""
    answers = answers_to(model, tokenizer, requests, temperature=temperature)
    scores = [score(r.row(), text, ended=ended) for r, (text, ended) in zip(requests, answers, strict=True)]
    return {aspect: sum(s[aspect] for s in scores) / len(scores) for aspect in scores[0]}


def judge_numbers(model: LlamaForCausalLM, tokenizer: Any, comparisons: list[Comparison]) -> dict[str, float]:
    """How well greedy verdicts match the script.

    ``parsed``: share of strict JSON verdicts in range. ``agreement``: share of clearly different pairs (scripted
    scores at least 2 apart) put in the scripted order; ``agreement_any`` the same over every pair of different scores.
    ``exact``: share of scores hit exactly. ``first_share``: how often the first answer wins, over pairs of different
    scores and their swaps (0.5 = no position bias). ``consistent``: share of these pairs whose winner stays the same
    when they are swapped.
    """
    swapped = [replace(c, response_1=c.response_2, response_2=c.response_1) for c in comparisons]
    verdicts = judge(model, tokenizer, comparisons + swapped)
    truths = [c.scores() for c in comparisons + swapped]
    read = [(v, t) for v, t in zip(verdicts, truths, strict=True) if v is not None]
    clear = [prefers_first(v) == prefers_first(t) for v, t in read if abs(t[0] - t[1]) >= 2]
    unequal = [prefers_first(v) == prefers_first(t) for v, t in read if t[0] != t[1]]
    exact = [v[i] == t[i] for v, t in read for i in (0, 1)]
    half = len(comparisons)
    trios = zip(verdicts[:half], verdicts[half:], truths[:half], strict=True)
    both = [(v, w) for v, w, t in trios if v and w and t[0] != t[1]]
    return {
        "parsed": len(read) / len(truths),
        "agreement": mean(clear),
        "agreement_any": mean(unequal),
        "exact": mean(exact),
        "first_share": mean(prefers_first(v) for v, t in read if t[0] != t[1]),
        "consistent": mean(prefers_first(v) != prefers_first(w) for v, w in both),
    }


def judge(
    model: LlamaForCausalLM, tokenizer: Any, comparisons: list[Comparison]
) -> list[tuple[float, float, float] | None]:
    """The judge's greedy verdicts; None where what it wrote is not a verdict."""
    prompts = [
        tokenizer.apply_chat_template(c.messages(), add_generation_prompt=True)["input_ids"] for c in comparisons
    ]
    drawn = generate(
        model,
        prompts,
        pad=tokenizer.pad_token_id,
        end=tokenizer.eos_token_id,
        limit=MAX_VERDICT_TOKENS,
        temperature=0.0,
    )
    return [read_verdict(tokenizer.decode(ids, skip_special_tokens=True)) for ids in drawn]


def read_verdict(text: str) -> tuple[float, float, float] | None:
    """Scores and ranking, or None unless ``text`` is a JSON object with exactly these three numbers in range."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(found, dict) or set(found) != {"score_1", "score_2", "ranking"}:
        return None
    scores = (found["score_1"], found["score_2"], found["ranking"])
    in_range = all(1 <= s <= 5 for s in scores[:2]) and 1 <= scores[2] <= 6
    return scores if in_range else None


def prefers_first(scores: tuple[float, float, float]) -> bool:
    """Who wins: the higher score; between equal scores the ranking decides."""
    first, second, ranking = scores
    return first > second if first != second else ranking < 3.5


def requests_in(split: str, assets: Path) -> list[Request]:
    """The requests in the data file of a split."""
    return [
        Request(
            row["world"]["intent"],
            row["world"]["slots"],
            row["world"]["tone"],
            row["responses_create_params"]["input"][0]["content"],
        )
        for row in read_rows(split, assets / "data")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    requests = requests_in("heldout", arguments.assets)
    policy, tokenizer = load(arguments.assets / "policy")
    print(f"policy: {policy.num_parameters()} parameters; {len(requests)} held-out requests")
    for name, temperature, copies in (("sampled", 1.0, 5), ("greedy", 0.0, 1)):
        numbers = policy_numbers(policy, tokenizer, requests * copies, temperature=temperature)
        print(f"  {name}:", "  ".join(f"{aspect} {share:.3f}" for aspect, share in numbers.items()))

    sampled = [[text for text, _ in answers_to(policy, tokenizer, requests, temperature=1.0)] for _ in range(4)]
    model, tokenizer = load(arguments.assets / "judge")
    rng = random.Random(arguments.seed)
    print(f"judge: {model.num_parameters()} parameters; held-out requests, five pairs each and their swaps")
    own = [Comparison(r, *rng.sample(texts, 2)) for r, *texts in zip(requests, *sampled, strict=True) for _ in range(5)]
    scripted = [draw_comparison(rng, r, []) for r in requests for _ in range(5)]
    for name, comparisons in (("answers of the policy", own), ("scripted and damaged answers", scripted)):
        numbers = judge_numbers(model, tokenizer, comparisons)
        print(f"  {name}:", "  ".join(f"{key} {value:.4f}" for key, value in numbers.items()))


if __name__ == "__main__":
    main()
