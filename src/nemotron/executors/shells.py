"""Commands on the machine that submits: here, or on a login node through the system's own ssh.

ssh reads the user's configuration, so jump hosts, keys and names work as they do in a terminal. It never asks anything:
a password or an unknown host key is an error that says what to do. Connections are shared and kept for a minute.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemotron.disk.home import expanded
from nemotron.errors import NotAvailableError, UnreachableError

TIMEOUT_S = 60.0
"""For one command; uploading code takes longer."""
BROKEN = 255
"""ssh's own exit code: the connection failed, not the command."""
NO_COMMAND = 127
"""A shell's exit code where there is no such command."""
KEPT = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "SLURM_CONF", "TERM", "TZ", "USER")
"""Variables that a submitted job takes over from the machine that submits."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command came to."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output, decoded and stripped."""
        return self.out.decode(errors="replace").strip()


class Shell(Protocol):
    """Runs commands on the machine that submits."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Done:
        """Run a command to its end.

        Args:
            environment: when given, the command sees this and of the machine's own no more than :data:`KEPT`. Values
                travel over pipes, never on a command line.

        Raises:
            ExecutorError: the machine cannot be reached, or the command takes too long.
            NotAvailableError: there is no such command.
        """


class Here:
    """This machine."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Done:
        """Run a command on this machine."""
        env = None
        if environment is not None:
            env = {name: os.environ[name] for name in KEPT if name in os.environ} | dict(environment)
        return _run(argv, stdin, env, timeout_s, what=f"`{argv[0]}`")


@dataclass(frozen=True, slots=True)
class Ssh:
    """A login node."""

    host: str
    user: str | None = None
    identity: str | None = None
    options: tuple[str, ...] = ()

    @property
    def destination(self) -> str:
        """As ssh takes it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Done:
        """Run a command on the login node."""
        command = shlex.join(argv)
        if environment is not None:
            # The values go through the pipe, in front of what the command itself reads. The command is found before
            # they are set: a PATH among them is the job's.
            first, rest = shlex.quote(argv[0]), shlex.join(argv[1:])
            found = f"nemotron_command=$(type -P {first} || echo {first})\n"
            stdin = (found + _exports(environment) + f'exec "$nemotron_command" {rest}\n').encode() + stdin
            command = "bash -s"
        done = _run([*self._ssh(), "--", self.destination, command], stdin, None, timeout_s, what=f"ssh {self.host}")
        if done.code == BROKEN:
            raise UnreachableError(
                f"ssh to `{self.destination}` failed: {last_line(done.err) or 'no reason given'}",
                hint=f"try `ssh {self.destination} true` in a terminal: it must work without any question",
            )
        return done

    def _ssh(self) -> list[str]:
        control = expanded("~/.ssh")
        defaults = ["BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4"]
        # Sockets of kept connections need a folder that nobody else can write.
        if control.is_dir() and not any(option.startswith("ControlPath") for option in self.options):
            defaults += ["ControlMaster=auto", f"ControlPath={control}/nemotron-%C", "ControlPersist=60"]
        words = ["ssh", "-T"]
        for option in (*self.options, *defaults):
            words += ["-o", option]
        return [*words, "-i", self.identity] if self.identity else words


def _run(argv: Sequence[str], stdin: bytes, env: Mapping[str, str] | None, timeout_s: float, *, what: str) -> Done:
    try:
        # By this machine's PATH: one in `env` is the job's.
        words = [shutil.which(argv[0]) or argv[0], *argv[1:]]
        done = subprocess.run(words, input=stdin, capture_output=True, env=env, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise NotAvailableError(
            f"there is no command `{argv[0]}` here", hint="install it, or submit from a machine that has it"
        ) from None
    except subprocess.TimeoutExpired as error:
        # What it waits for, it has often said.
        said = last_line((error.stderr or b"").decode(errors="replace"))
        message = f"{what} gave no answer for {timeout_s:.0f} s" + (f": {said}" if said else "")
        raise UnreachableError(message, hint="try again later") from None
    return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def _exports(environment: Mapping[str, str]) -> str:
    """Shell lines that leave the machine's own variables out, but for a few, and set these."""
    keep = "|".join(KEPT)
    lines = [f'for name in $(compgen -e); do case "$name" in {keep}) ;; *) unset "$name" ;; esac; done']
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join(lines) + "\n"


def last_line(text: str) -> str:
    """The last line in which something stands, stripped; empty where there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
