"""A stand-in for NeMo-RL's tree: a logger, and a script that writes what v0.7.0 writes and ends as it is told."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.compile.plan import compile_job
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.engines.nemo_rl.folder import PYTHON_VARIABLE, ROOT_VARIABLE
from nemotron.manifest import declaration, find_step
from nemotron.place import Place
from nemotron.runs.folder import RunFolder
from tests.unit.compile.compile_world import NODE

LOGGER = """
class Logger:
    def log_metrics(self, metrics, step, prefix="", step_metric=None, step_finished=False):
        print("logged", prefix, step)
"""
SCRIPT = """
import argparse, contextlib, json, os, signal, sys, threading, time, urllib.request
from pathlib import Path
from omegaconf import OmegaConf
from nemo_rl.utils.logger import Logger

class Policy:
    def __del__(self):
        time.sleep(600)  # as Ray does that is asked again after its end

def ask():
    while True:
        urllib.request.urlopen(os.environ["NEMOTRON_JUDGE_URL"].removesuffix("/v1") + "/health").close()
        time.sleep(0.05)

parser = argparse.ArgumentParser()
parser.add_argument("--config")
config = OmegaConf.to_container(OmegaConf.load(parser.parse_args().config), resolve=True)
assert Path("nemo_rl").is_dir(), "the working folder is the root of the tree"
policy, how = Policy(), os.environ["HOW"]
print("Final config:", config)
print("told", {name: os.environ.get(name) for name in ("NEMOTRON_JUDGE_URL", "NEMOTRON_JUDGE_TOKEN")})
logger, folder = Logger(), Path(config["checkpointing"]["checkpoint_dir"])
section = next(name for name in ("grpo", "dpo", "rm", "ppo", "sft") if name in config)
most = config[section]["max_num_steps"]
if how == "refused":
    raise KeyError("use_linear_ce_fusion_loss")
if how == "never starts":
    while True:
        print("waiting for the server", flush=True)
        time.sleep(0.05)
done = max([int(path.name[5:]) for path in folder.glob("step_*")], default=0)
if not done:
    logger.log_metrics({"loss": 0.9, "accuracy": 0.5}, 0, prefix="validation-default")
for step in range(done + 1, most + 1):
    if how == "swallows" and step == 2:
        print("Error in async loop: CUDA error")
        sys.exit(0)
    if how == "raises" and step == 2:
        raise RuntimeError("the worker died of " + os.environ.get("NEMOTRON_SECRET_X", "cold"))
    if how == "killed" and step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "asks" and step == 2:
        ask()
    if how == "hangs" and step == 2:
        time.sleep(600)
    if how != "no checkpoint":
        draft = folder / f"tmp_step_{step}"
        draft.mkdir(parents=True)
        (draft / "training_info.json").write_text(json.dumps({"total_steps": step}))
        draft.rename(folder / f"step_{step}")
    kl = 5.0 if how == "drifts" and step == 2 else 0.1
    measured = {"loss": 1.0 / step, "kl_penalty": kl, "table": [1, 2], "bad": float("nan")}
    if how == "misses" and step == 2:
        if "NEMOTRON_JUDGE_URL" in os.environ:
            with contextlib.suppress(OSError):
                ask()
        measured["genrm_simple_agent/missing_share/mean"] = 0.5
    logger.log_metrics(measured, step, prefix="train")
    logger.log_metrics({"total_step_time": 0.1}, step, "timing/train", step_finished=section == "grpo")
    if how in ("drifts", "misses") and step == 2:
        time.sleep(600)
    if how == "out of time" and step == 2:
        break
"""


OFF = ("policy.megatron_cfg.optimizer.bf16=false",)  # the tiny configs compute in float32


def make_tree(root: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A tree, and the environment that names it."""
    (root / "nemo_rl" / "utils").mkdir(parents=True)
    (root / "nemo_rl" / "__init__.py").touch()
    (root / "nemo_rl" / "utils" / "__init__.py").touch()
    (root / "nemo_rl" / "utils" / "logger.py").write_text(LOGGER)
    (root / "examples" / "nemo_gym").mkdir(parents=True)
    for name in ("run_dpo.py", "run_rm.py", "run_sft.py", "run_grpo.py", "run_ppo.py", "nemo_gym/run_grpo_nemo_gym.py"):
        (root / "examples" / name).write_text(SCRIPT)
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    monkeypatch.setenv("HOW", how)


def make_run(runs: Path, *words: str, step: str = "dpo", name: str = "tiny", place: Place = NODE) -> RunFolder:
    """A run of a step that is compiled for NeMo-RL on a node with one GPU."""
    found = find_step(f"rl/nemo_rl/{step}")
    code = declaration(found)
    sizes = ("engine=nemo_rl", "eval.heldout=null", "cluster.gpus_per_node=1", *(OFF if name == "tiny" else ()))
    overrides = parse_overrides(list(enumerate((*sizes, *words), start=5)))
    resolved = load(found.config_dir, name, overrides, run_dir=str(runs / "RUN_ID"), model=code.config)
    plan = compile_job(found, resolved, code, runs_dir=runs, place=replace(place, memory_bytes=None))
    assert plan.ok, plan.errors
    return RunFolder.create(runs, plan.job())
