"""Write the data of the tiny world (train, validation, held-out) and its tokenizer. Same seed, same bytes.

python scripts/tiny_world/make_data.py [--out src/nemotron/assets/tiny_world]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import tokenizer as tiny_tokenizer
from world import PRINCIPLES, Mixture, Request, draw_answer, draw_request, split_combos, verdict, verdict_text

SEED = 20
SIZES = {"train": 2400, "validation": 200, "heldout": 200}
SHARES = (0.08, 0.15)
"""Share of slot-word pairs that only validation, or only held-out, uses."""
ASSETS = Path(__file__).resolve().parents[2] / "src/nemotron/assets/tiny_world"
EVERYTHING = Mixture(0.5, 0.5, 0.5, {"curt": 0.5, "friendly": 0.5, "angry": 0.5}, 0.9)


def requests_of(split: str) -> list[Request]:
    """The requests of a split, all different; slot pairs of one split occur in no other."""
    names = list(SIZES)
    combos = split_combos(SEED, SHARES)[names.index(split)]
    rng = random.Random(f"{SEED} {split}")
    drawn: dict[str, Request] = {}
    while len(drawn) < SIZES[split]:
        request = draw_request(rng, combos)
        drawn.setdefault(request.text, request)
    return list(drawn.values())


def data_row(split: str, number: int, request: Request) -> dict[str, object]:
    """A NeMo-Gym row for the group-comparison agent."""
    return {
        "responses_create_params": {"input": [{"role": "user", "content": request.text}]},
        "agent_ref": {"type": "responses_api_agents", "name": "genrm_simple_agent"},
        "prompt_id": f"{split}-{number:04d}",
        "dataset": "tiny_world",
        "principle": PRINCIPLES[number % len(PRINCIPLES)],
        **request.row(),
    }


def corpus(size: int = 12000) -> list[str]:
    """Texts that the tokenizer learns its merges from: requests, answers, verdicts; training slot pairs only."""
    combos = split_combos(SEED, SHARES)[0]
    rng = random.Random(f"{SEED} corpus")
    texts = [*PRINCIPLES * 50]
    for _ in range(size):
        request = draw_request(rng, combos)
        answers = [draw_answer(rng, request, EVERYTHING) for _ in range(2)]
        texts += [request.text, *answers, verdict_text(verdict(request, answers[0], answers[1]))]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    out: Path = parser.parse_args().out
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        rows = [data_row(split, number, request) for number, request in enumerate(requests_of(split))]
        path = out / "data" / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} rows")
    tokenizer = tiny_tokenizer.train(corpus())
    for model in ("policy", "judge"):
        tiny_tokenizer.save(tokenizer, out / model)
    print(f"tokenizer: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
