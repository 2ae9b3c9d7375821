"""GRPO steps side by side with TRL's GRPOTrainer: equal model, threads and work, runs alternating; prints ratios.

    python benchmarks/grpo_vs_trl.py [--models m1 m15] [--threads 2] [--steps 4] [--rounds 3]

Work of a step: 16 prompts x 8 generations, 33 prompt and exactly 64 new tokens, KL to a reference, a reward that
costs nothing, one optimizer step. TRL runs in a venv of its own, made on the first run; gradient checkpointing is off
on both sides (its best setting). A step counts from the end of the step before, the first one of each process is
dropped, the median over all rounds is reported. Steps during which other processes took more than a tenth of the
machine are marked: timings beside them mean little.
"""

from __future__ import annotations

from side_by_side import compare

SIDES = [(side, precision, "") for precision in ("float32", "bfloat16") for side in ("ours", "trl")]

if __name__ == "__main__":
    compare("grpo", "a GRPO step of 16 prompts x 8 samples", SIDES)
