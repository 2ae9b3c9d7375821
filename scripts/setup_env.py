"""Make the environment of `make setup`: a venv, a torch that fits the machine, nemotron with its libraries.

python3.11 scripts/setup_env.py --venv .venv [--torch 'torch==2.13.0'] [--torch-only]

On Linux the torch that the public index offers brings CUDA libraries of several gigabytes along. A machine without an
NVIDIA driver gets a CPU build where one is in reach: first from pip's own sources (a folder of wheels, an index of your
own), then from PyTorch's index, which uv knows. pip and uv do all the fetching; this only chooses and says why.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELEASE = "2.13.0"
OLDEST = (2, 11)
EXTRAS = "local,data,cluster,wandb,tensorboard,dev"
CHOOSE = "to choose otherwise: make setup TORCH='torch==VERSION', or PIP_FIND_LINKS=FOLDER with a wheel of your own"
MEASURED = "about 2.7 GB (measured with torch 2.13.0, Python 3.12, x86_64)"
PIP = ("-m", "pip", "--disable-pip-version-check")
# A question must not hang where an index is out of reach; installing itself keeps the tools' own patience.
IMPATIENT_PIP = ("--retries", "1", "--timeout", "10")
IMPATIENT_UV = {"UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "1"}
QUESTION_SECONDS = 120.0


def say(text: str) -> None:
    """One line of progress, on stderr and at once."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


class Machine:
    """What the choice asks of the machine; the only place that starts processes."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.python = str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))

    def ask(self, *command: str, env: dict[str, str] | None = None, text: str = "") -> str | None:
        """What a command prints; ``None`` when it fails, is not there, or takes more than two minutes."""
        try:
            done = subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                timeout=QUESTION_SECONDS,
                env={**os.environ, **(env or {})},
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def do(self, *command: str, env: dict[str, str] | None = None) -> None:
        """Run a command for its effect, its output in sight.

        Raises:
            subprocess.CalledProcessError: it failed, and has said why.
        """
        subprocess.run(command, check=True, env={**os.environ, **(env or {})})

    def linux(self) -> bool:
        """Elsewhere the public index has no CUDA builds."""
        return sys.platform == "linux"

    def nvidia(self) -> bool:
        """An NVIDIA driver is loaded, or its tool finds a GPU."""
        return Path("/proc/driver/nvidia/version").exists() or self.ask("nvidia-smi", "-L") is not None

    def uv(self) -> str | None:
        """A uv: the user's, the venv's, or one that pip puts into the venv now."""
        here = Path(self.python).with_name("uv")
        if found := shutil.which("uv") or (str(here) if here.exists() else None):
            return found
        say("fetching uv, which knows PyTorch's own index")
        fetched = self.ask(self.python, *PIP, "install", "--quiet", *IMPATIENT_PIP, "uv")
        return str(here) if fetched is not None and here.exists() else None


@dataclass(frozen=True)
class Choice:
    """Which torch, why, and who fetches it."""

    requirement: str | None
    """What to install; ``None`` keeps the one that is there."""
    why: str
    uv: str | None = None
    """The uv that installs it from PyTorch's index; pip does otherwise."""
    size: str | None = None
    """How much there is to download, where it is not small."""


def release(version: str) -> tuple[int, ...]:
    """``(2, 13)`` of ``2.13.0+cpu``."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def installed(machine: Machine) -> str | None:
    """Version of the venv's torch, when it can be imported."""
    said = machine.ask(machine.python, "-c", "import torch; print(torch.__version__)")
    return said.strip() if said else None


def cpu_build(listing: str) -> str | None:
    """The CPU build of our release in what ``pip index versions`` prints, e.g. ``2.13.0+cpu``."""
    found = re.search(r"^Available versions: (.*)$", listing, re.MULTILINE)
    versions = [version.strip() for version in found[1].split(",")] if found else []
    return next((version for version in versions if version.startswith(f"{RELEASE}+cpu")), None)


def download(lock: str) -> tuple[int, int] | None:
    """Bytes and packages of a ``pylock.toml``; ``None`` when it does not say the size of each."""
    import tomllib  # not in the Pythons that are refused below

    try:
        packages = tomllib.loads(lock).get("packages", [])
    except tomllib.TOMLDecodeError:
        return None
    sizes = [[f.get("size") for f in package.get("wheels") or [package.get("sdist", {})]] for package in packages]
    if not sizes or not all(size and all(size) for size in sizes):
        return None
    return sum(min(size) for size in sizes), len(sizes)


def announced(machine: Machine, uv: str | None) -> str:
    """How much ``torch`` is to download as pip would choose it, in words."""
    if uv is not None:
        ask = (uv, "pip", "compile", "--quiet", "--python", machine.python, "--format", "pylock.toml", "-")
        lock = machine.ask(*ask, env={**IMPATIENT_UV, **certificates()}, text=f"torch=={RELEASE}\n")
        if lock and (found := download(lock)):
            return f"{found[0] / 1e9:.1f} GB in {found[1]} packages"
    return MEASURED


def certificates() -> dict[str, str]:
    """uv brings its own list of authorities; a company's are in the system's."""
    return {} if "UV_SYSTEM_CERTS" in os.environ else {"UV_SYSTEM_CERTS": "true"}


def from_pytorch(uv: str, machine: Machine, *more: str) -> tuple[str, ...]:
    """uv's command that installs the CPU build from PyTorch's index."""
    return (uv, "pip", "install", "--python", machine.python, "--torch-backend", "cpu", *more, f"torch=={RELEASE}")


def choose(machine: Machine, wanted: str | None) -> Choice:
    """Which torch to install; ``wanted`` is the user's own word and always wins."""
    if wanted:
        return Choice(wanted, "TORCH says which")
    if (version := installed(machine)) and release(version) >= OLDEST:
        return Choice(None, f"{version} is installed and stays")
    plain = f"torch=={RELEASE}"
    if not machine.linux():
        return Choice(plain, "the public index has CPU builds for this system")
    if machine.nvidia():
        return Choice(plain, "this machine has an NVIDIA driver, so the build that pip finds")
    listing = machine.ask(machine.python, *PIP, "index", "versions", *IMPATIENT_PIP, "torch")
    if listing and (build := cpu_build(listing)):
        return Choice(f"torch=={build}", "no NVIDIA driver here, so a CPU build; pip's sources have one")
    uv = machine.uv()
    if uv is not None:
        asked = from_pytorch(uv, machine, "--dry-run", "--quiet")
        if machine.ask(*asked, env={**IMPATIENT_UV, **certificates()}) is not None:
            return Choice(plain, "no NVIDIA driver here, so a CPU build, from PyTorch's own index", uv)
    return Choice(
        plain,
        "no NVIDIA driver here, but no CPU build in reach either (pip's sources have none for this Python, PyTorch's "
        "own index does not answer), so what pip finds, CUDA libraries included",
        size=announced(machine, uv),
    )


def install_torch(machine: Machine, choice: Choice) -> None:
    """Carry the choice out, with the installer's progress in sight."""
    say(f"torch: {choice.why}")
    if choice.requirement is None:
        return
    say(CHOOSE)
    say(f"installing {choice.requirement}" + (f"; to download: {choice.size}" if choice.size else ""))
    if choice.uv is not None:
        machine.do(*from_pytorch(choice.uv, machine), env=certificates())
    else:
        machine.do(machine.python, *PIP, "install", choice.requirement)


def make_venv(machine: Machine) -> None:
    """Make the venv with this Python; one of the same version stays as it is, with what is in it."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = machine.ask(machine.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    if found is not None and found.strip() == here:
        return
    say(f"making {machine.venv} with Python {here}")
    clear = (
        ["--clear"] if (machine.venv / "pyvenv.cfg").exists() else []
    )  # of another Python; no other folder is emptied
    machine.do(sys.executable, "-m", "venv", *clear, str(machine.venv))


def main(words: list[str] | None = None) -> int:
    """Set up; 0 when all is there, 2 for a Python that is not supported, else the exit code of what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--torch", metavar="REQUIREMENT", help="install this torch instead of choosing one")
    parser.add_argument("--torch-only", action="store_true", help="stop after torch")
    options = parser.parse_args(words)
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        say(f"this is Python {sys.version.split()[0]}; nemotron needs 3.11, 3.12 or 3.13: make setup PYTHON=python3.12")
        return 2
    machine = Machine(options.venv)
    try:
        make_venv(machine)
        install_torch(machine, choose(machine, options.torch))
        if not options.torch_only:
            say(f"installing nemotron with its libraries ({EXTRAS})")
            machine.do(machine.python, *PIP, "install", "--editable", f"{ROOT}[{EXTRAS}]")
    except subprocess.CalledProcessError as failed:
        say(f"`{' '.join(failed.cmd)}` failed, see above")
        return failed.returncode or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
