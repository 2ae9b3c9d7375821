"""The dry run's estimate of memory beside the peak of the run itself, resident set on a CPU, for models of real size.

Two shapes: SmolLM2-135M as ``tests/integration/smollm2/install.sh`` makes it, and a random Qwen2 of 494M parameters
with a vocabulary of 151,936 words. Each is trained for two steps of ``rlvr`` on the shipped sums, with settings that
decide its memory: all weights or adapters, with and without a reference, activations kept or computed anew.

    python benchmarks/memory.py --smollm2 build/smollm2/model                # all that fit this machine
    python benchmarks/memory.py --smollm2 build/smollm2/model --only 135M    # cases whose name begins so
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models import TOKENIZER, random_qwen

ROOT = Path(__file__).resolve().parents[1]
WORK = [
    "grpo.num_prompts_per_step=2",
    "grpo.num_generations_per_prompt=8",
    "grpo.max_num_steps=2",
    "policy.train_global_batch_size=16",
    "policy.max_total_sequence_length=128",
    "policy.generation.max_new_tokens=64",
    "policy.generation.stop_token_ids=[0]",
    "checkpointing.enabled=false",
    "eval.heldout=null",
]
DTENSOR = ["policy.megatron_cfg.enabled=false", "policy.dtensor_cfg.enabled=true"]
LORA = [*DTENSOR, "policy.dtensor_cfg.lora_cfg.enabled=true"]
ANEW = [*DTENSOR, "policy.dtensor_cfg.activation_checkpointing=true"]
NO_REFERENCE = ["loss_fn.reference_policy_kl_penalty=0", "limits.max_kl=null"]


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    model: str
    words: list[str]


CASES = [
    Case("135M all weights", "smollm2", ["policy.train_micro_batch_size=16"]),
    Case("135M micro-batch 4", "smollm2", ["policy.train_micro_batch_size=4"]),
    Case("135M anew", "smollm2", ["policy.train_micro_batch_size=16", *ANEW]),
    Case("135M adapters", "smollm2", ["policy.train_micro_batch_size=8", *LORA]),
    Case("0.5B no reference", "qwen2", ["policy.train_micro_batch_size=8", *NO_REFERENCE, *ANEW]),
    Case("0.5B adapters", "qwen2", ["policy.train_micro_batch_size=8", *LORA, ANEW[-1]]),
]


def estimate(command: list[str], case: Case) -> dict[str, int]:
    """What the dry run says."""
    found = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, cwd=ROOT)
    if found.returncode:
        sys.exit(f"{case.name}: the dry run ends with {found.returncode}\n{found.stderr}{found.stdout[-2000:]}")
    memory: dict[str, int] = json.loads(found.stdout)["memory_bytes"]
    return memory


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "bench", help="where the random model is made")
    parser.add_argument("--only", default="", help="beginning of a case's name")
    parser.add_argument("--estimate-only", action="store_true")
    options = parser.parse_args()
    models = {"smollm2": options.smollm2, "qwen2": options.cache / "qwen2-0.5b"}
    for case in CASES:
        folder = models[case.model]
        if not case.name.startswith(options.only) or folder is None:
            continue
        if case.model == "qwen2" and not folder.is_dir():
            random_qwen(folder, tokenizer=TOKENIZER)
        runs = Path(tempfile.mkdtemp(prefix="memory-"))
        words = [f"policy.model_name={folder.resolve()}", *WORK, *case.words]
        command = [sys.executable, "-m", "nemotron", "steps", "run", "rl/nemo_rl/rlvr", "-c", "tiny", *words]
        command += ["--runs-dir", str(runs)]
        said = estimate(command, case)
        if options.estimate_only:
            print(case.name, {name: f"{value / 2**30:.2f}" for name, value in said.items() if name != "parameters"})
            continue
        measured = peak_of(command, case)
        shutil.rmtree(runs)
        print(
            f"{case.name:24} measured {measured / 2**30:6.2f} GiB, estimate {said['total'] / 2**30:6.2f} GiB: "
            f"{said['total'] / measured - 1:+.0%}",
            flush=True,
        )


def peak_of(command: list[str], case: Case) -> int:
    """Bytes that the run's process held at most: of the processes it starts the judge of code is far smaller."""
    script = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)\n"
        "sys.stderr.write(done.stderr[-3000:])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
        "sys.exit(done.returncode)\n"
    )
    found = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, cwd=ROOT)
    if found.returncode:
        sys.exit(f"{case.name}: the run ends with {found.returncode}\n{found.stderr}")
    return int(found.stdout)


if __name__ == "__main__":
    main()
