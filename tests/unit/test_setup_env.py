"""`make setup` chooses a torch that fits the machine, says why, and announces a large download before it starts."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup_env.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["setup_env"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


setup = load()

WITH_CPU = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0, 2.12.1\n"
WITHOUT = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.14.1+cpu, 2.13.0, 2.12.1\n  INSTALLED: 2.13.0+cpu\n"
LOCK = """
[[packages]]
name = "torch"
wheels = [{ url = "torch.whl", size = 526600000 }]
[[packages]]
name = "nvidia-cudnn-cu13"
wheels = [{ url = "one.whl", size = 366000000 }, { url = "two.whl", size = 400000000 }]
[[packages]]
name = "only-source"
sdist = { url = "source.tar.gz", size = 7400000 }
"""


class FakeMachine(setup.Machine):  # type: ignore[misc, name-defined]
    """Answers in place of processes: the one border of this script."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        super().__init__(folder)
        self.facts = {
            "linux": True,
            "nvidia": False,
            "uv": None,
            "torch": None,
            "pip": WITHOUT,
            "index": False,
            **facts,
        }
        self.asked: list[str] = []
        self.done: list[tuple[str, ...]] = []

    def linux(self) -> bool:
        return bool(self.facts["linux"])

    def nvidia(self) -> bool:
        return bool(self.facts["nvidia"])

    def uv(self) -> str | None:
        return self.facts["uv"]  # type: ignore[no-any-return]

    def ask(self, *command: str, env: dict[str, str] | None = None, text: str = "") -> str | None:
        line = " ".join(command)
        self.asked.append(line)
        if "import torch" in line:
            return self.facts["torch"]  # type: ignore[no-any-return]
        if "index versions" in line:
            return self.facts["pip"]  # type: ignore[no-any-return]
        if "--torch-backend cpu" in line:
            return "" if self.facts["index"] else None
        if "compile" in line:
            return self.facts.get("lock")
        return None

    def do(self, *command: str, env: dict[str, str] | None = None) -> None:
        self.done.append(command)


def test_a_cpu_build_of_pips_own_sources(tmp_path: Path) -> None:
    choice = setup.choose(FakeMachine(tmp_path, pip=WITH_CPU, uv="uv", index=True), None)
    assert (choice.requirement, choice.uv, choice.size) == ("torch==2.13.0+cpu", None, None)


def test_a_cpu_build_of_pytorchs_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(tmp_path, uv="/bin/uv", index=True)
    setup.install_torch(machine, setup.choose(machine, None))
    assert machine.done == [
        ("/bin/uv", "pip", "install", "--python", machine.python, "--torch-backend", "cpu", "torch==2.13.0")
    ]
    assert "CPU build, from PyTorch's own index" in capsys.readouterr().err


def test_a_torch_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in ("2.13.0+cpu\n", "2.11.0\n", "2.15.1+cu130\n"):
        machine = FakeMachine(tmp_path, torch=version, nvidia=True)
        setup.install_torch(machine, setup.choose(machine, None))
        assert machine.done == []
        assert f"{version.strip()} is installed and stays" in capsys.readouterr().err


def test_one_that_is_too_old_does_not(tmp_path: Path) -> None:
    assert (
        setup.choose(FakeMachine(tmp_path, torch="2.9.1+cpu\n", pip=WITH_CPU), None).requirement == "torch==2.13.0+cpu"
    )


def test_with_a_driver_pip_chooses(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, nvidia=True, pip=WITH_CPU, uv="uv", index=True)
    choice = setup.choose(machine, None)
    assert (choice.requirement, choice.uv) == ("torch==2.13.0", None)
    assert not any("index" in line for line in machine.asked)


def test_elsewhere_than_on_linux_there_is_no_cuda(tmp_path: Path) -> None:
    assert setup.choose(FakeMachine(tmp_path, linux=False), None) == setup.Choice(
        "torch==2.13.0", "the public index has CPU builds for this system"
    )


@pytest.mark.parametrize(
    ("facts", "size"),
    [
        ({"uv": "uv", "lock": LOCK}, "0.9 GB in 3 packages"),
        ({"uv": "uv", "lock": LOCK.replace(", size = 526600000", "")}, setup.MEASURED),
        ({"uv": "uv", "lock": "not toml ["}, setup.MEASURED),
        ({"uv": "uv", "lock": None}, setup.MEASURED),
        ({"uv": None, "pip": None}, setup.MEASURED),
    ],
)
def test_a_large_download_is_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], size: str
) -> None:
    machine = FakeMachine(tmp_path, **facts)
    setup.install_torch(machine, setup.choose(machine, None))
    said = capsys.readouterr().err
    assert f"installing torch==2.13.0; to download: {size}" in said
    assert "no CPU build in reach" in said
    assert "make setup TORCH=" in said
    assert machine.done == [(machine.python, *setup.PIP, "install", "torch==2.13.0")]


def test_the_users_word_wins_and_nothing_is_asked(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, torch="2.13.0", nvidia=True)
    assert setup.choose(machine, "torch>=2.11").requirement == "torch>=2.11"
    assert machine.asked == []


def test_progress_is_not_hidden(tmp_path: Path) -> None:
    for facts in ({"pip": WITH_CPU}, {"uv": "uv", "index": True}, {}):
        machine = FakeMachine(tmp_path, **facts)
        setup.install_torch(machine, setup.choose(machine, None))
        assert not any(word in ("--quiet", "-q") for command in machine.done for word in command)


def test_a_python_that_is_not_supported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 14, 0))
    assert setup.main([]) == 2
    assert "nemotron needs 3.11, 3.12 or 3.13" in capsys.readouterr().err


class WithoutPip(setup.Machine):
    """Makes real venvs, but for pip, which takes seconds to install."""

    def do(self, *command: str, env: dict[str, str] | None = None) -> None:
        assert command[1:3] == ("-m", "venv")
        super().do(*command[:3], "--without-pip", *command[3:], env=env)


def test_a_venv_of_this_python_stays_and_a_folder_that_is_none_is_not_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    machine = WithoutPip(folder)
    setup.make_venv(machine)
    assert (folder / "thesis.txt").exists()
    (folder / "inside").write_text("a torch")
    setup.make_venv(machine)
    assert (folder / "inside").exists()


def test_a_venv_of_another_python_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("")
    machine = FakeMachine(tmp_path)
    setup.make_venv(machine)
    assert machine.done == [(sys.executable, "-m", "venv", "--clear", str(tmp_path))]


def test_what_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "make_venv", lambda machine: None)
    monkeypatch.setattr(setup.Machine, "ask", lambda self, *command, **more: None)
    monkeypatch.setattr(setup.Machine, "nvidia", lambda self: True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    assert setup.main(["--venv", str(tmp_path)]) == 7
    assert "install torch==2.13.0` failed" in capfd.readouterr().err


def test_a_question_that_fails_is_no_answer(tmp_path: Path) -> None:
    machine = setup.Machine(tmp_path)
    assert machine.ask(sys.executable, "-c", "print('yes')") == "yes\n"
    assert machine.ask(sys.executable, "-c", "raise SystemExit(1)") is None
    assert machine.ask(str(tmp_path / "no-such-command")) is None
    with pytest.raises(subprocess.CalledProcessError):
        machine.do(sys.executable, "-c", "raise SystemExit(1)")


def test_no_registry_is_named() -> None:
    assert "://" not in SCRIPT.read_text()
