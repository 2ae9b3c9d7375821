"""One Ray over the nodes of a Slurm job, for engines that need one. Runs in the job, on Python's own library.

``ray_node up FILE GPUS`` is a task on every node. The first starts Ray's head and says in FILE where it answers; the
others join it. Ray stays in the foreground: a daemon that ends ends its task, and with it the job.
``ray_node wait FILE NODES COMMAND...`` becomes COMMAND, with ``RAY_ADDRESS``, as soon as all nodes have joined.

Whoever can reach the head could give it work to do: all of them share a token of this job (``RAY_AUTH_TOKEN``, from
Ray 2.52 on), which stands in no file.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from nemotron.engines.nemo_rl.folder import PYTHON_VARIABLE
from nemotron.engines.nemo_rl.version import CURRENT

UP_S, JOIN_S = 300.0, 1800.0
"""How long the head may take, and all others after it."""
_AGENTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
_ALIVE = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False); "
_COUNT = _ALIVE + "print(sum(1 for node in ray.nodes() if node['Alive']))"


def ray_python() -> str:
    """The interpreter that has the Ray which NeMo-RL works with."""
    return os.environ.get(PYTHON_VARIABLE) or (CURRENT.python if Path(CURRENT.python).is_file() else sys.executable)


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port for each that nobody has now, and no two the same: what is let go may be given once more."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}


def start_words(gpus: int, ports: Mapping[str, int], *more: str) -> list[str]:
    """Ray's daemon in the foreground, with no port of the usual ones: two jobs on one machine would share them.

    The kernel gives workers theirs (0). Out of a range a raylet gives what nobody has *yet*: two that start at once
    give the same one, and the worker that comes second is dead, or the node's agent, and its node with it.
    """
    words = [ray_python(), "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *more]
    ports = {**ports, "min-worker-port": 0, "max-worker-port": 0}
    return [*words, f"--num-gpus={gpus}", *(f"--{name}={port}" for name, port in ports.items())]


def up(file: Path, gpus: int) -> int:
    """Start the head or join it; the exit code of the daemon."""
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return _join(file, gpus)
    # The address of the node that srun was called on, the first of the job, as the others see it.
    host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostbyname(socket.gethostname())
    ports = free_ports(("port", "ray-client-server-port", *_AGENTS))
    head, port = ("--head", f"--node-ip-address={host}", "--include-dashboard=false"), ports["port"]
    daemon = _Daemon(start_words(gpus, ports, *head))
    end = time.monotonic() + UP_S
    while not _answers(host, port):
        if (code := daemon.ended()) is not None:
            return _failed(f"Ray's head ended with {code}")
        if time.monotonic() > end:
            daemon.stop()
            return _failed(f"Ray's head does not answer on {host}:{port} after {UP_S:.0f} s")
        time.sleep(0.5)
    draft = file.with_name(f"{file.name}.tmp")
    draft.write_text(f"{host}:{port}")
    os.replace(draft, file)
    return daemon.wait()


def _join(file: Path, gpus: int) -> int:
    address = _address(file, UP_S)
    if address is None:
        return _failed(f"the head has not said in {file} where it answers")
    return _Daemon(start_words(gpus, free_ports(_AGENTS), f"--address={address}")).wait()


def wait(file: Path, nodes: int, command: list[str]) -> int:
    """Become ``command`` when ``nodes`` nodes have joined; returns only where they do not."""
    address = _address(file, UP_S)
    if address is None:
        return _failed(f"Ray's head has not come up: see {file.parent / 'logs' / 'ray.log'}")
    end, joined = time.monotonic() + JOIN_S, 0
    while joined < nodes:
        asked = subprocess.run(
            [ray_python(), "-c", _COUNT, address], capture_output=True, text=True, timeout=UP_S, check=False
        )
        last = asked.stdout.split()[-1:] or ["0"]
        joined = int(last[0]) if asked.returncode == 0 and last[0].isdigit() else 0
        if joined < nodes and time.monotonic() > end:
            return _failed(f"{joined} of {nodes} nodes have joined Ray after {JOIN_S:.0f} s")
    print(f"Ray: {joined} nodes at {address}", flush=True)
    os.execvpe(command[0], command, {**os.environ, "RAY_ADDRESS": address})


class _Daemon:
    """A process that ends with this one."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda signum, _: self._process.send_signal(signum))

    def ended(self) -> int | None:
        """The exit code of a process that has ended."""
        return self._process.poll()

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self.wait()

    def wait(self) -> int:
        """The exit code, when it has ended; of one that was killed as a shell says it."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return True
    except OSError:
        return False


def _address(file: Path, limit_s: float) -> str | None:
    end = time.monotonic() + limit_s
    while not file.exists():
        if time.monotonic() > end:
            return None
        time.sleep(0.5)
    return file.read_text()


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def main() -> int:
    """See the module."""
    verb, file, number, *command = sys.argv[1:]
    return up(Path(file), int(number)) if verb == "up" else wait(Path(file), int(number), command)


if __name__ == "__main__":
    sys.exit(main())
