"""A Ray over the nodes of a Slurm job: two on one machine, where nothing of either may lie at its usual place."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.slurm.nemo_rl_tree import tree
from tests.integration.slurm.sshd import Sshd
from tests.integration.test_slurm import Cluster, cluster, processes, sshd, until

__all__ = ["cluster", "sshd"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


RAY_SCRIPT = """
import argparse, json, os, time
from pathlib import Path
import ray, yaml
import psutil
from nemo_rl.utils.logger import Logger
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

parser = argparse.ArgumentParser()
parser.add_argument("--config")
config = yaml.safe_load(Path(parser.parse_args().config).read_text())
ray.init(address="auto", log_to_driver=False)
gpus = ray.cluster_resources()["GPU"]
# As NeMo-RL has it: places on different nodes, which exist at the same time. Free tasks may follow each other on one.
places = placement_group([{"CPU": 1, "GPU": 2}] * 2, strategy="STRICT_SPREAD")
ray.get(places.ready())
node_id = ray.remote(num_gpus=2)(lambda: ray.get_runtime_context().get_node_id())
where = ray.get([node_id.options(scheduling_strategy=In(places, index)).remote() for index in range(2)])
print("sees", sum(node["Alive"] for node in ray.nodes()), "nodes,", gpus, "GPUs, tasks on", len(set(where)), flush=True)

def listens():
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == os.environ["SLURM_JOB_ID"]:
                yield from (one.laddr.port for one in process.net_connections("tcp") if one.status == "LISTEN")
        except psutil.Error:
            continue

usual = [port for port in listens() if port in (6379, 8265, 52365) or 10001 <= port < 20000]
print("listens at", len(set(listens())), "ports, of Ray's usual ones at", usual, flush=True)
if os.environ["HOW"] == "waits":
    time.sleep(600)
folder, logger = Path(config["checkpointing"]["checkpoint_dir"]), Logger()
for step in range(1, config["dpo"]["max_num_steps"] + 1):
    draft = folder / f"tmp_step_{step}"
    draft.mkdir(parents=True)
    (draft / "training_info.json").write_text(json.dumps({"total_steps": step}))
    draft.rename(folder / f"step_{step}")
    logger.log_metrics({"loss": 1.0 / step}, step, prefix="train")
    logger.log_metrics({"total_step_time": 0.1}, step, "timing/train")
"""


@pytest.fixture
def over_nodes(cluster: Cluster, tmp_path: Path) -> Callable[..., list[str]]:
    """NeMo-RL's tree with a script that is Ray's own driver, and a profile with two nodes."""
    python = Path(os.environ.get("NEMOTRON_LEPTON_VENV", Path(__file__).parents[2] / "build" / "lepton")) / "bin/python"
    if not python.exists():
        pytest.fail("no Ray: run tests/integration/lepton/install.sh build/lepton")
    root = tree(tmp_path / "tree", "run_dpo.py", RAY_SCRIPT)
    # What an earlier `ray.init()` of this user leaves behind, with which a Ray would ask for a token of its own.
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("token-of-another-ray-" + "0" * 32)

    def words(how: str, flag: str, python: Path = python, tunnel: str = "", shared: str = "shared") -> list[str]:
        values = {"NEMOTRON_NEMO_RL_ROOT": str(root), "NEMOTRON_NEMO_RL_PYTHON": str(python), "HOW": how}
        values["HOME"] = str(home)
        cluster.profile(
            "two",
            *("nodes = 2", "gpus_per_node = 2", 'mem = "2G"', "cpus_per_task = 4"),
            *(f"env_vars.{name} = {json.dumps(value)}" for name, value in values.items()),
            *tunnel.splitlines(),
            shared=shared,
        )
        sizes = ("cluster.num_nodes=2", "cluster.gpus_per_node=2", "dpo.max_num_steps=2", "eval.heldout=null")
        off = ("policy.megatron_cfg.optimizer.bf16=false", "~policy.pretrained_checkpoint")
        batches = ("policy.train_micro_batch_size=16", "dpo.val_micro_batch_size=25")
        return ["steps", "run", "dpo", "-c", "tiny", "engine=nemo_rl", flag, "two", *sizes, *off, *batches]

    return words


@pytest.mark.parametrize("shared", ["shared", "far"])
def test_nemo_rl_over_two_nodes_sees_both(
    cluster: Cluster, sshd: Sshd, over_nodes: Callable[..., list[str]], shared: str
) -> None:
    """From the login node, and from a machine that sees nothing of the cluster."""
    tunnel = sshd.profile if shared == "far" else ""
    done = cluster.nemotron(*over_nodes("trains", "-r", tunnel=tunnel, shared=shared))
    assert done.returncode == 0, done.stderr + done.stdout
    run = cluster.newest()
    assert cluster.state(run) == "finished"
    there = cluster.folder / shared / "runs" / run
    log = (there / "attempts" / "1" / "logs" / "nemo_rl.log").read_text()
    assert "sees 2 nodes, 4.0 GPUs, tasks on 2" in log
    # Another Ray of this machine, of another job, finds none of its ports taken, and takes none of ours.
    assert re.search(r"listens at \d\d+ ports, of Ray's usual ones at \[\]", log), log
    until(lambda: not processes(str(there)))


def test_a_node_that_loses_ray_ends_the_run(cluster: Cluster, over_nodes: Callable[..., list[str]]) -> None:
    started = cluster.nemotron(*over_nodes("waits", "-b"))
    assert started.returncode == 0, started.stderr
    run = started.stdout.strip()
    log = cluster.run_dir(run) / "attempts" / "1" / "logs" / "nemo_rl.log"
    until(lambda: log.exists() and "sees 2 nodes" in log.read_text(), 240)
    os.kill(processes(f"slurm.ray_node up .*{run}")[-1], signal.SIGTERM)
    followed = cluster.nemotron("runs", "logs", "-f", run)
    assert followed.returncode == 9, followed.stderr
    assert "Ray has ended on a node" in followed.stdout
    assert "Restarts=0" in cluster.lab.run("scontrol", "show", "job", str(cluster.handle(run)["job_id"]))
    until(lambda: not processes(str(cluster.run_dir(run))))


def test_a_head_that_does_not_come_up_ends_the_job(cluster: Cluster, over_nodes: Callable[..., list[str]]) -> None:
    """Whoever asks a head that is dead waits for minutes: nobody asks it before its daemon is looked at."""
    begun = time.monotonic()
    done = cluster.nemotron(*over_nodes("trains", "-r", Path("/bin/false")))
    assert time.monotonic() - begun < 240
    assert done.returncode == 9, done.stderr + done.stdout
    assert "error: Ray has ended on a node of this job: see ray.log" in done.stdout
    run = cluster.run_dir(cluster.newest())
    assert "error: Ray's head ended with 1" in (run / "attempts" / "1" / "logs" / "ray.log").read_text()
    until(lambda: not processes(str(run)))
