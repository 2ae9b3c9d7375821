"""Write the shipped policy as a Megatron-Core checkpoint, the form in which RL steps take it.

python scripts/tiny_world/make_megatron.py
"""

from __future__ import annotations

from pathlib import Path

from nemotron.checkpoints.convert import hf_to_megatron

ASSETS = Path(__file__).parents[2] / "src" / "nemotron" / "assets" / "tiny_world"


def main() -> None:
    """Convert, compare every weight bit for bit, replace."""
    done = hf_to_megatron(ASSETS / "policy", ASSETS / "policy_megatron", verify="weights", overwrite=True)
    print(f"{done.target}: {done.parameters:,} parameters, {done.nbytes:,} bytes of {done.dtype}")


if __name__ == "__main__":
    main()
