"""What `policy.offload_optimizer_for_logprob` saves on a GPU, and what it costs: the same steps with it and without.

    python benchmarks/optimizer_offload.py                          # a random model of SmolLM2-135M's shape
    python benchmarks/optimizer_offload.py --model FOLDER --rows 32

Each side is a process: supervised steps on random rows in bfloat16. It prints the most that was allocated in forward
and backward passes, in the optimizer's step, and what was held between steps; seconds a step; and whether the weights
are the same bits. The exit code is 1 when the peak on a GPU is no less. That the key changes no bit is shown there by
``tests/unit/rl/test_offload.py``: backward passes on a GPU have sums without an order. On a CPU the key has nothing to
do and no memory is measured: that proves the script and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from models import random_smollm2

STEPS = 4


def side(model: Path, rows: int, length: int, *, away: bool) -> dict[str, Any]:
    """Take the steps; bytes by moment, seconds of the last step, a hash of the weights."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch
    import torch.utils.deterministic

    from nemotron.contracts.samples import Completion, Group
    from nemotron.rl.optim import Optimization
    from nemotron.rl.policy import Policy

    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    policy = Policy.load(model, precision="bfloat16")
    adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": 1e-5}}
    optimization = Optimization.build(policy.parameters(), optimizer=adamw, max_grad_norm=1.0, offload=away)
    cuda = policy.device.type == "cuda"
    generator = torch.Generator().manual_seed(0)
    most: dict[str, int] = {"passes": 0, "step": 0, "between": 0}

    def peak(name: str) -> None:
        if cuda:
            torch.cuda.synchronize()
            most[name] = max(most[name], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

    took = 0.0
    for _ in range(STEPS):
        begun = time.monotonic()
        drawn = torch.randint(3, 200, (rows, length), generator=generator).tolist()
        groups = [Group(tokens[:8], [Completion(tokens[8:], [0.0] * (length - 8), truncated=True)]) for tokens in drawn]
        (-policy.response_logprobs(groups).mean()).backward()
        peak("passes")
        optimization.clip_and_step()
        peak("step")
        if cuda:
            most["between"] = torch.cuda.memory_allocated()
        took = time.monotonic() - begun
    digest = hashlib.sha256()
    for parameter in policy.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return {**most, "seconds": took, "weights": digest.hexdigest(), "device": policy.device.type}


def main() -> int:
    """Print one line a side, and what differs; 1 when the key is of no use, or on a CPU of any consequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--rows", type=int, default=16, help="of a step, all in one pass")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--side", choices=["with", "without"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(side(args.model, args.rows, args.length, away=args.side == "with")))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or Path(scratch) / "model"
        if args.model is None:
            random_smollm2(model)
        found = {}
        for name in ("without", "with"):
            argv = [sys.executable, __file__, "--model", str(model), "--side", name]
            argv += ["--rows", str(args.rows), "--length", str(args.length)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: {done.stderr.strip()[-1500:]}", file=sys.stderr)
                return 1
            found[name] = json.loads(done.stdout.strip().split("\n")[-1])
    return told(found["without"], found["with"])


def told(before: dict[str, Any], after: dict[str, Any]) -> int:
    """The lines, and the exit code."""
    cuda = before["device"] == "cuda"
    for name, one in (("without", before), ("with", after)):
        memory = ", ".join(f"{moment} {one[moment] / 2**20:,.0f} MiB" for moment in ("passes", "step", "between"))
        print(f"{name:8}{memory + ', ' if cuda else ''}{one['seconds']:.3f} s a step")
    same = before["weights"] == after["weights"]
    peaks = [max(one["passes"], one["step"]) for one in (before, after)]
    saved = f"the peak is {(peaks[0] - peaks[1]) / 2**20:,.0f} MiB less" if cuda else "no GPU, no memory is measured"
    print(f"weights: {'the same bits' if same else 'other bits'}; {saved}")
    return 0 if (peaks[1] < peaks[0] if cuda else same) else 1


if __name__ == "__main__":
    sys.exit(main())
