"""A real Slurm on this machine: munged, slurmctld and a slurmd for each node, all below one folder, without systemd.

Nodes are daemons on ports of their own and claim more processors than there are. Partitions: ``batch`` (the default),
``low``, whose jobs are preempted by those of ``high``, and ``closed``, which takes none.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.slurm.accounts import Accounts

READY_S = 180.0
PORTS = (20_000, 32_768)
"""Above those that Ray gives its workers, below those that the kernel gives."""
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


_random, _given = random.SystemRandom(), set[int]()


def free_port() -> int:
    """A port of loopback that nobody has, for a server that takes seconds to start.

    Not one that the kernel chooses: those it soon gives somebody else, or once more to whoever asks here.
    """
    while True:
        port = _random.randrange(*PORTS)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


@dataclass
class Lab:
    """A running cluster."""

    folder: Path
    nodes: int = 2
    more: tuple[str, ...] = ()
    """Further lines of slurm.conf."""
    prefix: str = field(default_factory=lambda: f"n{os.urandom(3).hex()}x")
    """Nodes are called so, in each lab differently: the kernel's groups have their names, and a group of another lab of
    this machine has limits with which a job of this one cannot start."""
    accounted: bool = False
    """With accounts: `sacct`, and a QOS for each kind of limit."""
    pids: list[Path] = field(default_factory=list)
    accounts: Accounts | None = None

    @property
    def limits_memory(self) -> bool:
        """Whether the kernel can be asked to hold jobs to their memory here, as it is on a cluster."""
        return os.getuid() == 0 and os.access("/sys/fs/cgroup/memory", os.W_OK)

    @property
    def names(self) -> list[str]:
        """Of the nodes."""
        return [f"{self.prefix}{number}" for number in range(1, self.nodes + 1)]

    @property
    def config(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What clients need."""
        return {"SLURM_CONF": str(self.config), "PATH": SBIN}

    def run(self, *words: str) -> str:
        """One of Slurm's commands; its output."""
        env = {**os.environ, **self.environment}
        return subprocess.run(words, env=env, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        for name in ("state", "log", "run", *(f"spool-{name}" for name in self.names)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        if self.accounted:
            self.accounts = Accounts(self.folder, free_port(), self.environment)
        self._write_config()
        log = f"--log-file={self.folder}/log/munged.log"
        run = self.folder / "run"
        self._spawn(
            "munged", "--force", f"--key-file={key}", f"--socket={run}/munge", f"--pid-file={run}/munged.pid", log
        )
        self.pids.append(run / "munged.pid")
        if self.accounts is not None:
            self.accounts.start()
        self._spawn("slurmctld", "-i")
        for name in self.names:
            self._spawn("slurmd", "-N", name)
        self.pids = [*(run / f"slurmd-{name}.pid" for name in self.names), run / "slurmctld.pid", *self.pids]
        self._wait_until_idle()

    def _wait_until_idle(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            with suppress(subprocess.SubprocessError):
                if len(self.run("sinfo", "-h", "-N", "-p", "batch", "-t", "idle", "-o", "%N").split()) == self.nodes:
                    return
            time.sleep(0.1)
        logs = "\n".join(path.read_text()[-2000:] for path in sorted((self.folder / "log").glob("*.log")))
        raise RuntimeError(f"Slurm did not come up:\n{logs}")

    def stop(self) -> None:
        """End jobs and daemons."""
        with suppress(subprocess.SubprocessError):
            jobs = self.run("squeue", "-h", "-o", "%A").split()
            if jobs:
                self.run("scancel", *jobs)
                self.wait_until_empty()
        if self.accounts is not None:
            self.accounts.stop()
        for path in self.pids:
            with suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)
        end = time.monotonic() + 20
        while time.monotonic() < end and any(path.exists() for path in self.pids):
            time.sleep(0.1)
        self._remove_groups()

    def wait_until_empty(self, limit_s: float = 120) -> None:
        """Wait until no job is left that waits or runs."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if not self.run("squeue", "-h", "-o", "%A"):
                return
            time.sleep(0.2)
        raise RuntimeError(self.run("squeue"))

    def forget_jobs(self) -> None:
        """A controller that begins anew: of jobs that have ended, the accounts alone know. Numbers go on."""
        pid = int((self.folder / "run" / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + READY_S
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > end:
                raise RuntimeError("slurmctld does not end")
            time.sleep(0.1)
        self._spawn("slurmctld", "-c")
        self._wait_until_idle()

    def bring_back(self, node: str) -> None:
        """A node that was set down, idle again."""
        end = time.monotonic() + READY_S
        while "idle" not in (state := self.run("sinfo", "-h", "-p", "batch", "-n", node, "-o", "%T")):
            if time.monotonic() > end:
                raise RuntimeError(f"{node} stays {state}")
            # Refused while the node is already on its way.
            with suppress(subprocess.CalledProcessError):
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
            time.sleep(0.5)

    def _remove_groups(self) -> None:
        """What Slurm leaves behind of the groups of its jobs."""
        for folder in sorted(Path("/sys/fs/cgroup/memory").glob(f"slurm_{self.prefix}*/**/"), reverse=True):
            with suppress(OSError):  # somebody is still in it
                folder.rmdir()

    def _spawn(self, *words: str) -> None:
        """Start a daemon, which goes into the background by itself."""
        env = {**os.environ, **self.environment}
        program = shutil.which(words[0], path=SBIN)
        if program is None:
            raise RuntimeError(f"no {words[0]}: run tests/integration/slurm/install.sh")
        done = subprocess.run([program, *words[1:]], env=env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stderr}")

    def _write_config(self) -> None:
        host, user = socket.gethostname().partition(".")[0], subprocess.check_output(["id", "-un"], text=True).strip()
        folder = self.folder
        lines = [
            "ClusterName=lab",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={free_port()}",
            *(f"SlurmUser={user}", f"SlurmdUser={user}"),
            # A job that is queued again waits until the credentials of its last turn have expired, usually two minutes.
            *("AuthType=auth/munge", f"AuthInfo=socket={folder}/run/munge,cred_expire=10", "CredType=cred/munge"),
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool-%n",
            *(f"SlurmctldPidFile={folder}/run/slurmctld.pid", f"SlurmdPidFile={folder}/run/slurmd-%n.pid"),
            *(f"SlurmctldLogFile={folder}/log/slurmctld.log", f"SlurmdLogFile={folder}/log/slurmd-%n.log"),
            *("ProctrackType=proctrack/linuxproc", "SwitchType=switch/none", "MpiDefault=none"),
            f"TaskPlugin={'task/cgroup' if self.limits_memory else 'task/none'}",
            "JobAcctGatherType=jobacct_gather/none",
            *("SelectType=select/cons_tres", "SelectTypeParameters=CR_Core_Memory"),
            *("PreemptType=preempt/partition_prio", "PreemptMode=CANCEL"),
            "SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0",
            "SlurmdParameters=config_overrides",
            *(
                "ReturnToService=2",
                "MinJobAge=86400",
                "KillWait=2",
                "InactiveLimit=0",
            ),
            *(self.accounts.lines if self.accounts else ["AccountingStorageType=accounting_storage/none"]),
            "PropagateResourceLimits=NONE",
            "GresTypes=gpu",
            *self.more,
        ]
        for name in self.names:
            address = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()}"
            sizes = "CPUs=8 CoresPerSocket=8 RealMemory=16000 Gres=gpu:2"
            lines.append(f"NodeName={name} {address} {sizes} State=UNKNOWN")
        nodes = f"Nodes={self.prefix}[1-{self.nodes}]"
        # GPUs on paper: Slurm wants a device behind each.
        gpus = (
            f"NodeName={self.prefix}[1-{self.nodes}] Name=gpu File={device}\n" for device in ("/dev/null", "/dev/zero")
        )
        (folder / "gres.conf").write_text("".join(gpus))
        lines += [
            f"PartitionName=batch {nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=2 DefMemPerNode=4000",
            f"PartitionName=low {nodes} State=UP PriorityTier=1 PreemptMode=CANCEL DefMemPerNode=4000",
            f"PartitionName=high {nodes} State=UP PriorityTier=9 DefMemPerNode=4000",
            f"PartitionName=closed {nodes} State=DRAIN",
        ]
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\n")
        self.config.write_text("\n".join(lines) + "\n")
