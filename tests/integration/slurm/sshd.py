"""An ssh server on loopback with keys of its own, which knows where the cluster is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.integration.slurm.lab import SBIN, free_port


@dataclass
class Sshd:
    """The server; ``folder`` belongs to it."""

    folder: Path
    slurm_conf: Path
    path: str = SBIN
    port: int = 0

    def start(self) -> None:
        """Make keys and start."""
        self.folder.mkdir(parents=True)
        for name in ("host", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        shutil.copy(self.folder / "id.pub", self.folder / "authorized")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.port = free_port()
        lines = [
            *(f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder}/host"),
            *(f"AuthorizedKeysFile {self.folder}/authorized", "StrictModes no", f"PidFile {self.folder}/pid"),
            *("UsePAM no", "PermitRootLogin yes", f'SetEnv SLURM_CONF={self.slurm_conf} PATH="{self.path}"'),
        ]
        config = self.folder / "sshd_config"
        config.write_text("\n".join(lines) + "\n")
        self.listen()

    def listen(self) -> None:
        """Start with the keys and the address of the last time."""
        program = shutil.which("sshd", path=SBIN)
        assert program is not None
        subprocess.run([program, "-f", str(self.folder / "sshd_config")], check=True)
        end = time.monotonic() + 20
        while not (self.folder / "pid").exists():
            assert time.monotonic() < end, "sshd does not start"
            time.sleep(0.05)

    @property
    def profile(self) -> str:
        """Lines of a profile that goes through it."""
        known = self.folder / "known"
        options = [f"Port={self.port}", f"UserKnownHostsFile={known}", "StrictHostKeyChecking=accept-new"]
        # No kept connections: a test that breaks one must not break the next.
        options += ["ControlMaster=no", "ControlPath=none"]
        listed = ", ".join(f'"{option}"' for option in options)
        return f'tunnel = "ssh"\nhost = "127.0.0.1"\nidentity = "{self.folder}/id"\nssh_options = [{listed}]\n'

    def break_connections(self) -> None:
        """End every connection, as a network does; the server goes on listening."""
        if not (self.folder / "pid").exists():
            return
        listener = int((self.folder / "pid").read_text())
        children = subprocess.run(["pgrep", "-P", str(listener)], capture_output=True, text=True, check=False)
        for pid in children.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def stop(self) -> None:
        """End it."""
        self.break_connections()
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)
        end = time.monotonic() + 20
        while (self.folder / "pid").exists():
            assert time.monotonic() < end, "sshd does not end"
            time.sleep(0.05)
