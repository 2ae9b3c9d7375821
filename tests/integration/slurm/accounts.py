"""Slurm's accounts for a lab: slurmdbd on loopback, MariaDB behind it at a socket, both below one folder.

A lab without them has no `sacct` and no limits of a QOS, as many clusters have none; one with them takes ten seconds
longer to start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

READY_S = 180.0
QOS: Mapping[str, str] = {
    "one-submitted": "MaxSubmitJobsPerUser=1 Flags=DenyOnLimit",
    "one-running": "MaxJobsPerUser=1",
    "small-jobs": "MaxTRESPerJob=cpu=1",
    "small-jobs-or-none": "MaxTRESPerJob=cpu=1 Flags=DenyOnLimit",
}
"""A QOS for each kind of limit, and which limit that is. The user of the lab may use all of them."""


@dataclass
class Accounts:
    """Database and daemon of one lab."""

    folder: Path
    port: int
    environment: Mapping[str, str]
    """For Slurm's commands."""
    _database: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def lines(self) -> list[str]:
        """Of slurm.conf."""
        return [
            "AccountingStorageType=accounting_storage/slurmdbd",
            *("AccountingStorageHost=127.0.0.1", f"AccountingStoragePort={self.port}"),
            f"AccountingStoragePass={self.folder}/run/munge",
            "AccountingStorageEnforce=associations,limits,qos",
            "PriorityType=priority/multifactor",
        ]

    def start(self) -> None:
        """Start both, and enter cluster, account, QOS and user. munged has to run."""
        self._start_database()
        self._start_daemon()
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        self.manage("add", "cluster", "lab")
        self.manage("add", "account", "lab", "Cluster=lab")
        for name, limits in QOS.items():
            self.manage("add", "qos", name, *limits.split())
        self.manage("add", "user", user, "Account=lab", "DefaultAccount=lab", "AdminLevel=None")
        self.manage("modify", "user", user, "set", f"qos+={','.join(QOS)}")

    def manage(self, *words: str) -> str:
        """One call of sacctmgr; its output."""
        return self._run("sacctmgr", "--immediate", *words)

    def pause(self) -> None:
        """End the daemon: the accounts are there, and nobody can ask them."""
        pid = int((self.folder / "run" / "slurmdbd.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        self._wait(lambda: not Path(f"/proc/{pid}").exists(), "slurmdbd does not end")

    def go_on(self) -> None:
        """Start the daemon again."""
        self._start_daemon()

    def stop(self) -> None:
        """End both."""
        with suppress(OSError, ValueError):
            self.pause()
        if self._database is not None:
            # Nothing of the database is wanted any more: it need not write all that it has.
            self._database.kill()
            self._database.wait(20)

    def _start_database(self) -> None:
        data, log = self.folder / "mysql", self.folder / "log"
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        own = ["--no-defaults", f"--user={user}", f"--datadir={data}"]
        made = [_program("mariadb-install-db"), *own, "--auth-root-authentication-method=normal", "--skip-test-db"]
        with (log / "mysql.log").open("wb") as out:
            subprocess.run(made, stdout=out, stderr=out, timeout=READY_S, check=True)
            sizes = ["--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M", "--performance-schema=OFF"]
            # slurmdbd wants it as patient as that.
            sizes += ["--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
            words = [_program("mariadbd"), *own, f"--socket={self._socket}", "--skip-networking", *sizes]
            self._database = subprocess.Popen(words, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

        def create() -> bool:
            words = ["mariadb", "--no-defaults", f"--socket={self._socket}", "--user=root"]
            words += ["--execute=CREATE DATABASE IF NOT EXISTS slurm_acct_db"]
            return subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 0

        self._wait(create, "MariaDB does not come up")

    def _start_daemon(self) -> None:
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        config = self.folder / "slurmdbd.conf"
        lines = [
            *("AuthType=auth/munge", f"AuthInfo=socket={self.folder}/run/munge"),
            *("DbdHost=localhost", "DbdAddr=127.0.0.1", f"DbdPort={self.port}", f"SlurmUser={user}"),
            *(f"LogFile={self.folder}/log/slurmdbd.log", f"PidFile={self.folder}/run/slurmdbd.pid"),
            *("StorageType=accounting_storage/mysql", "StorageHost=localhost", "StorageUser=root"),
            "StorageLoc=slurm_acct_db",
        ]
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        # MariaDB's library takes its socket from this variable.
        env = {**os.environ, **self.environment, "MYSQL_UNIX_PORT": str(self._socket)}
        subprocess.run([_program("slurmdbd")], env=env, check=True, capture_output=True, timeout=60)

        def answers() -> bool:
            with suppress(subprocess.SubprocessError):
                return bool(self._run("sacctmgr", "--noheader", "list", "qos", limit_s=5))
            return False

        self._wait(answers, "slurmdbd does not come up")

    @property
    def _socket(self) -> Path:
        return self.folder / "run" / "mysql"

    def _run(self, *words: str, limit_s: float = 60) -> str:
        env = {**os.environ, **self.environment}
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=limit_s, check=False)
        if done.returncode:
            raise subprocess.SubprocessError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def _wait(self, what: Callable[[], bool], failed: str) -> None:
        end = time.monotonic() + READY_S
        while not what():
            if time.monotonic() > end:
                logs = [self.folder / "log" / name for name in ("mysql.log", "slurmdbd.log")]
                raise RuntimeError("\n".join([failed, *(log.read_text()[-2000:] for log in logs if log.exists())]))
            time.sleep(0.1)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise RuntimeError(f"no {name}: run tests/integration/slurm/install.sh")
    return found
