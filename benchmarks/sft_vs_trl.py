"""SFT steps side by side with TRL's SFTTrainer: equal model, threads and work, runs alternating; prints ratios.

    python benchmarks/sft_vs_trl.py [--models m1 m15] [--threads 2] [--steps 8] [--rounds 3]

Work of a step: 32 rows, a prompt of 48 tokens and an answer of 64 to 160, so about 160 tokens a row; forward and
backward and one step of AdamW. TRL pads the rows of a batch to the longest, as it does by itself. Gradient
checkpointing is off in TRL. A step counts from the end of the step before, the first one of each process is dropped,
the median over all rounds is reported. Steps during which other processes took more than a tenth of the machine are
marked: timings beside them mean little.
"""

from __future__ import annotations

from side_by_side import compare

SIDES = [
    (side, precision, variant)
    for precision in ("float32", "bfloat16")
    for side, variant in (("ours", ""), ("trl", "padded"))
]

if __name__ == "__main__":
    compare("sft", "an SFT step of 32 rows", SIDES)
