"""Make the tiny world's reward model with the step that users run, and store it in bfloat16 like the other models.

    python scripts/tiny_world/train_reward_model.py [--seed 42] [--run FOLDER] [--out FOLDER]

Runs `nemotron steps run rl/nemo_rl/rm -c tiny` (or takes the finished run `--run`), rounds the weights of its last
checkpoint, measures mean and standard deviation of the training pairs' scores again, and prints the accuracies.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from make_data import ASSETS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nemotron.data.rows import read_pairs
from nemotron.rl.chat import Chat
from nemotron.rl.loops.reward_model import score_pairs
from nemotron.rl.reward_pairs import RewardPair, from_rows
from nemotron.rl.scalar_model import ScalarModel

STEP = "rl/nemo_rl/rm"
BATCH = 64


def trained(runs: Path, seed: int) -> Path:
    """A new run of the step; its folder."""
    words = [sys.executable, "-m", "nemotron", "steps", "run", STEP, "-c", "tiny", "--runs-dir", str(runs)]
    subprocess.run([*words, f"rm.seed={seed}"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    [run] = [entry for entry in runs.iterdir() if not entry.name.startswith(".")]
    return run


def last_checkpoint(run: Path) -> Path:
    """Its Hugging Face folder."""
    steps = sorted((run / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    return steps[-1] / "policy/weights/hf"


def pairs(assets: Path, split: str, chat: Chat) -> list[RewardPair]:
    return from_rows(read_pairs(assets / f"data/pairs_{split}.jsonl"), chat, limit=96).pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--run", type=Path, help="a finished run to take instead of training anew")
    parser.add_argument("--out", type=Path, default=ASSETS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        folder = last_checkpoint(given.run or trained(Path(runs), given.seed))
        rounded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = Chat(tokenizer, {})
    model = ScalarModel(rounded.float())
    scores = score_pairs(model, pairs(given.out, "train", chat), BATCH).double()
    model.set_reward_statistics(float(scores.mean()), float(scores.std(unbiased=False)))
    model.model.to(torch.bfloat16)
    model.save(given.out / "reward_model", tokenizer)

    shipped = ScalarModel.load(given.out / "reward_model", device="cpu")
    figures = {"reward_mean": shipped.reward_mean, "reward_std": shipped.reward_std}
    for split in ("train", "validation", "heldout"):
        scores = score_pairs(shipped, pairs(given.out, split, chat), BATCH)
        figures[f"{split} accuracy"] = float((scores[::2] > scores[1::2]).float().mean())
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
