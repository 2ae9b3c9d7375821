"""Reward model steps side by side with TRL's RewardTrainer: equal model, threads and work, runs alternating.

    python benchmarks/rm_vs_trl.py [--models m1 m15] [--threads 2] [--steps 8] [--rounds 3]

Work of a step: 32 pairs, a prompt of 48 tokens and two answers of 64 to 96, so about 128 tokens a sequence; forward and
backward through the model with its scalar head and one step of AdamW. Both sides get tokens. Gradient checkpointing is
off in TRL. A step counts from the end of the step before, the first one of each process is dropped, the median over all
rounds is reported. Steps during which other processes took more than a tenth of the machine are marked: timings beside
them mean little.
"""

from __future__ import annotations

from side_by_side import compare

SIDES = [(side, precision, "") for precision in ("float32", "bfloat16") for side in ("ours", "trl")]

if __name__ == "__main__":
    compare("rm", "a reward model step of 32 pairs", SIDES)
