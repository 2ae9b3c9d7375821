"""All that a GPU has to show, in under 8 minutes: golden vectors, real steps in bfloat16, both samplers, what optimizer
state in host memory saves, TRL beside.

    python benchmarks/gpu.py                                      # a random model of SmolLM2-135M's shape
    python benchmarks/gpu.py --model build/smollm2/model          # the real one: it learns, too
    python benchmarks/gpu.py --vllm PATH/bin/vllm --trl-python PATH/bin/python

Each part has its own limit of time, and one that fails or lacks its package does not end the others: the last lines say
what was shown and what was not, and the exit code is 1 when a part failed. It opens no connection. Without a GPU it
runs on the CPU, which proves the script and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from models import random_smollm2  # noqa: E402
from tests.integration.smollm2_world import pairs, sums, write  # noqa: E402

MOST_S = 470.0
"""For all parts together."""
GRPO = (
    "policy.train_global_batch_size=64",
    "policy.train_micro_batch_size=64",
    "grpo.num_prompts_per_step=8",
    "grpo.num_generations_per_prompt=8",
    "loss_fn.reference_policy_kl_penalty=0.01",
)


@dataclass
class Shown:
    """What the parts say, and what failed."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    until: float = field(default_factory=lambda: time.monotonic() + MOST_S)

    def part(self, name: str, limit_s: float, work: Callable[[float], str]) -> None:
        """Run one part, within its limit and what is left of all."""
        left = min(limit_s, self.until - time.monotonic())
        begun = time.monotonic()
        try:
            said = work(left) if left > 10 else "FAILED: no time left"
        except subprocess.TimeoutExpired:
            said = f"FAILED: it did not end within {left:.0f} s"
        if said.startswith("FAILED"):
            self.failed.append(name)
        line = f"{name:<34}{time.monotonic() - begun:>6.1f} s  {said}"
        self.lines.append(line)
        print(line, flush=True)


class Memory:
    """The most that the GPU held, of all processes, as its driver says."""

    def __init__(self) -> None:
        self.most_mb: float | None = None
        self._ended = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[Memory]:
        """Ask twice a second."""
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        try:
            yield self
        finally:
            self._ended.set()
            watch.join()

    def _watch(self) -> None:
        asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        if shutil.which(asked[0]) is None:
            return
        while not self._ended.wait(0.5):
            said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
            held = [float(line) for line in said.split("\n") if line.strip()]
            self.most_mb = max([*held, self.most_mb or 0.0])


def tested(*words: str) -> Callable[[float], str]:
    """A part of the tests; some of them are skipped where there is no GPU."""

    def work(limit_s: float) -> str:
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
        said = done.stdout.strip().split("\n")
        failed = [line for line in said if line.startswith("FAILED")]
        return "\n".join([f"FAILED: {said[-1]}", *failed[:20]]) if done.returncode else said[-1]

    return work


def offloaded(model: Path, device: str) -> Callable[[float], str]:
    """Peak memory and time of steps with the optimizer's state in host memory and without."""

    def work(limit_s: float) -> str:
        argv = [sys.executable, str(ROOT / "benchmarks" / "optimizer_offload.py"), "--model", str(model)]
        argv += [] if device == "cuda" else ["--rows", "1", "--length", "32"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, check=False)
        said = done.stdout.strip()
        return f"FAILED: {said}\n{done.stderr.strip()[-1500:]}" if done.returncode else f"\n{said}"

    return work


def step(name: str, folder: Path, *words: str) -> Callable[[float], str]:
    """A run of a step in bfloat16: tokens a second, memory, and what it learned."""

    def work(limit_s: float) -> str:
        runs = Path(tempfile.mkdtemp(dir=folder))
        argv = [sys.executable, "-m", "nemotron", "steps", "run", name, "-c", "tiny", "--runs-dir", str(runs), *words]
        with Memory().watched() as memory:
            done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=limit_s, check=False)
        if done.returncode:
            return f"FAILED with code {done.returncode}: {done.stderr.strip()[-1500:]}"
        [run] = runs.iterdir()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "train/loss" in row][1:]
        status = json.loads((run / "status.json").read_text())
        said = [f"{len(steps) + 1} steps", _speed(steps)]
        if memory.most_mb is not None:
            said.append(f"{memory.most_mb:,.0f} MB on the GPU")
        before, after = (status.get(f"heldout_{when}") for when in ("before", "after"))
        if before and after and "fully_right" in before:
            said.append(f"held-out {before['fully_right']:.1%} to {after['fully_right']:.1%}")
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        return ", ".join(one for one in said if one)

    return work


def _speed(steps: list[dict[str, float]]) -> str:
    """Of the steps after the first: tokens a second where the algorithm counts them, else seconds a step."""
    timed = [row for row in steps if "timing/train/total_step_time" in row]
    if timed:
        seconds = sum(row["timing/train/total_step_time"] for row in timed)
        return f"{sum(row['train/total_num_tokens'] for row in timed) / seconds:,.0f} tokens a second"
    between = [after["wall_s"] - before["wall_s"] for before, after in pairwise(steps)]
    return f"{statistics.median(between):.2f} s a step" if between else ""


def beside(python: Path, device: str, model: Path, cache: Path) -> Callable[[float], str]:
    """GRPO and DPO steps in bfloat16 beside TRL's."""

    def work(limit_s: float) -> str:
        argv = [sys.executable, str(ROOT / "benchmarks" / "real_model_vs_trl.py"), "--smollm2", str(model)]
        argv += ["--device", device, "--precisions", "bfloat16", "--rounds", "1", "--steps", "4"]
        argv += ["--cache", str(cache), "--trl-python", str(python), "--train", "full"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, check=False)
        return f"FAILED: {done.stderr.strip()[-1500:]}" if done.returncode else "\n" + done.stdout.strip()

    return work


def has(python: Path, package: str) -> bool:
    """Whether an interpreter can import a package."""
    if shutil.which(python) is None:
        raise SystemExit(f"there is no interpreter `{python}`")
    return not subprocess.run([str(python), "-c", f"import {package}"], capture_output=True, check=False).returncode


def main() -> int:
    """Run all parts; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder of SmolLM2-135M-Instruct")
    parser.add_argument("--vllm", default=shutil.which("vllm"), help="the command of a vLLM (default: what PATH has)")
    parser.add_argument("--trl-python", type=Path, default=Path(sys.executable), help="an interpreter that has TRL")
    parser.add_argument("--steps", type=int, default=10, help="of every run")
    args = parser.parse_args()
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    with_trl = has(args.trl_python, "trl")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    shown = Shown()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = args.model.resolve() if args.model else folder / "model"
        if args.model is None:
            random_smollm2(model)
        shown.part("golden vectors", 90, tested("--golden-device", device, "tests/golden"))
        shown.part("optimizer state away: bits", 60, tested("tests/unit/rl/test_offload.py"))
        shown.part("optimizer state away: memory", 90, offloaded(model, device))
        parts(shown, folder, model, args)
        if with_trl:
            shown.part("beside TRL", 180, beside(args.trl_python, device, model, folder))
        else:
            print("beside TRL: left out, the interpreter has no `trl` (--trl-python)")
    print(f"\n{len(shown.lines) - len(shown.failed)} of {len(shown.lines)} parts shown on {name}")
    print("".join(f"failed: {one}\n" for one in shown.failed), end="")
    return 1 if shown.failed else 0


def parts(shown: Shown, folder: Path, model: Path, args: argparse.Namespace) -> None:
    """The steps, with each sampler."""
    rows, preferred = sums(), pairs()
    policy = (f"policy.model_name={model}", "policy.precision=bfloat16", f"checkpointing.save_period={args.steps}")
    heldout = write(folder / "sums_heldout.jsonl", rows[:64])
    adding = (
        *(*policy, *GRPO, f"grpo.max_num_steps={args.steps}", "rewards={functions: [{name: math}]}"),
        f"data.train.data_path={write(folder / 'sums.jsonl', rows[64:])}",
        *(f"data.validation.data_path={heldout}", f"eval.heldout.data_path={heldout}", "eval.heldout.max_samples=64"),
        *("policy.generation.max_new_tokens=16", "policy.optimizer.kwargs.lr=1e-5"),
    )
    judged = (
        *(*policy, *GRPO, f"grpo.max_num_steps={args.steps}", "~policy.pretrained_checkpoint"),
        *("eval.heldout.max_samples=16", "policy.optimizer.kwargs.lr=1e-5"),
    )
    choosing = (
        *(*policy, f"dpo.max_num_steps={args.steps}", "~policy.pretrained_checkpoint", "eval.heldout=null"),
        f"data.train.data_path={write(folder / 'pairs.jsonl', preferred[:64])}",
        f"data.validation.data_path={write(folder / 'pairs_heldout.jsonl', preferred[64:])}",
        *("policy.train_global_batch_size=8", "policy.train_micro_batch_size=8"),
    )
    samplers: list[tuple[str, tuple[str, ...]]] = [("embedded", ())]
    if args.vllm:
        samplers.append(("vllm", ("sampler.server=vllm", f"sampler.vllm_command={args.vllm}")))
    else:
        print("vLLM as sampler: left out, there is no `vllm` (--vllm)")
    for sampler, words in samplers:
        shown.part(f"rlvr, {sampler} sampler", 120, step("rl/nemo_rl/rlvr", folder, *adding, *words))
        shown.part(f"rlhf, {sampler} sampler", 120, step("rl/nemo_rl/rlhf", folder, *judged, *words))
    shown.part("dpo", 90, step("rl/nemo_rl/dpo", folder, *choosing, "policy.optimizer.kwargs.lr=1e-5"))
    on = ("policy.megatron_cfg.enabled=false", "policy.dtensor_cfg.enabled=true")
    adapters = (*on, "policy.dtensor_cfg.lora_cfg.enabled=true", "policy.optimizer.kwargs.lr=3e-4")
    shown.part("dpo, adapters", 90, step("rl/nemo_rl/dpo", folder, *choosing, *adapters))


if __name__ == "__main__":
    sys.exit(main())
