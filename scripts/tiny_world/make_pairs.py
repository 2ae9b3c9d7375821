"""Write the preference pairs of the tiny world: two answers to a request, the better one first. Same seed, same bytes.

    python scripts/tiny_world/make_pairs.py [--out src/nemotron/assets/tiny_world]

The requests are those of the prompt splits, so no prompt and no pair of slot words is in two splits. Which answer is
better is decided by `world.quality`, never by length alone. Half of the pairs are two independent answers; the others
are an answer and the same answer with one thing changed, of about the same length, which is what makes a pair hard.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from judging import EVEN, GOOD, damage
from make_data import ASSETS, SEED, data_row, requests_of
from world import (
    ANSWERS,
    KIND_CLOSERS,
    KIND_OPENERS,
    RUDE_CLOSERS,
    RUDE_OPENERS,
    Request,
    draw_answer,
    quality,
    wrong_intent,
    wrong_slots,
)

from nemotron.rewards.tiny_world import score

SIZES = {"train": 1500, "validation": 200, "heldout": 200}
NEAR_SHARE = 0.5
"""Share of pairs that differ in one thing only."""
DAMAGED_SHARE = 0.08
"""Share of independent answers that were spoiled: repeated, cut, shuffled, padded."""
PLAIN_OPENERS = ("Okay, ", "Sure, ", "Right, ")
PLAIN_CLOSERS = (" That is all.", " It is done.", " All is set.")


def pair_row(split: str, number: int, request: Request) -> dict[str, object]:
    """One preference row; the answers are drawn from a seed of their own, so that rows do not depend on each other."""
    rng = random.Random(f"{SEED} pairs {split} {number}")
    chosen, rejected = draw_pair(rng, request)
    row = data_row(split, number, request)
    return {
        "prompt": [{"role": "user", "content": request.text}],
        "chosen": chosen,
        "rejected": rejected,
        **{key: row[key] for key in ("prompt_id", "dataset", "principle", "world")},
        "aspects": {
            name: score(request.row(), text, ended=True) for name, text in (("chosen", chosen), ("rejected", rejected))
        },
    }


def draw_pair(rng: random.Random, request: Request) -> tuple[str, str]:
    """Two answers of different quality, the better one first."""
    while True:
        first, second = near_pair(rng, request) if rng.random() < NEAR_SHARE else independent_pair(rng, request)
        (points_1, key_1), (points_2, key_2) = quality(request, first), quality(request, second)
        # The last entry of a key is the length: a pair that differs in nothing else shows no preference.
        if (points_1, key_1[:-1]) == (points_2, key_2[:-1]):
            continue
        return (first, second) if (points_1, key_1) > (points_2, key_2) else (second, first)


def independent_pair(rng: random.Random, request: Request) -> tuple[str, str]:
    """Two answers that know nothing of each other."""
    return _draw_one(rng, request), _draw_one(rng, request)


def _draw_one(rng: random.Random, request: Request) -> str:
    text = draw_answer(rng, request, rng.choice((GOOD, EVEN)))
    spoiled = damage(rng, request, text) if rng.random() < DAMAGED_SHARE else text
    # No row has an empty answer: data checks refuse those.
    return spoiled if spoiled.strip() else text


def near_pair(rng: random.Random, request: Request) -> tuple[str, str]:
    """Two answers built alike but for one thing: the intent, a slot, the courtesy or an insult."""
    template = rng.choice(ANSWERS[request.intent])
    slots = request.slots if rng.random() < 0.8 else wrong_slots(rng, request.slots)
    opener = rng.choice(PLAIN_OPENERS)
    closer = rng.choice(KIND_CLOSERS if rng.random() < 0.6 else PLAIN_CLOSERS)
    core = template.format(**slots)
    first = _sentence(opener, core, closer)
    change = rng.choice(("intent", "slot", "courtesy", "insult"))
    if change == "intent":
        other = rng.choice(ANSWERS[wrong_intent(rng, request.intent)])
        return first, _sentence(opener, other.format(**slots), closer)
    if change == "slot":
        return first, _sentence(opener, template.format(**wrong_slots(rng, slots)), closer)
    if change == "courtesy":
        if rng.random() < 0.3:
            return first, _sentence(rng.choice(KIND_OPENERS), core, closer)
        return first, _sentence(opener, core, rng.choice(PLAIN_CLOSERS if closer in KIND_CLOSERS else KIND_CLOSERS))
    if rng.random() < 0.5:
        return first, _sentence(rng.choice(RUDE_OPENERS), core, closer)
    return first, _sentence(opener, core, rng.choice(RUDE_CLOSERS))


def _sentence(opener: str, core: str, closer: str) -> str:
    sentence = opener + core
    return sentence[0].upper() + sentence[1:] + "." + closer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    out: Path = parser.parse_args().out
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rows = [pair_row(split, number, request) for number, request in enumerate(requests_of(split)[:size])]
        path = out / "data" / f"pairs_{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
