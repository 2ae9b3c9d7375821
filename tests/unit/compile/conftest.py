"""Fixtures of the compile tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nemotron.compile.plan import Plan, compile_job
from nemotron.config import resolvers
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.manifest import EngineName, declaration, find_step
from nemotron.place import Place
from nemotron.steps.rl.nemo_rl.rlhf.step import STEP
from tests.unit.compile.compile_world import (
    CONFIGS,
    LAPTOP,
    OWN,
    Compile,
    CompileStep,
    Step,
    driven,
    fill,
    row,
    write_model,
    write_rows,
)


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the shipped assets. No test changes them."""
    assets = tmp_path_factory.mktemp("stand-ins") / "assets"
    for name in ("policy", "policy_megatron"):
        shutil.copytree(resolvers.ASSETS / "tiny_world" / name, assets / "tiny_world" / name)
    write_model(assets / "tiny_world" / "judge")
    for name, count in (("train", 400), ("validation", 40), ("heldout", 200)):
        rows = [row(f"{name} {i}", world={"intent": "return", "slots": {}}) for i in range(count)]
        write_rows(assets / f"tiny_world/data/{name}.jsonl", rows)
    pairs = [{"prompt": f"pair {i}", "chosen": "good", "rejected": "bad"} for i in range(40)]
    write_rows(assets / "tiny_world/data/pairs_validation.jsonl", pairs)
    return assets


def own_files(folder: Path) -> None:
    """``own.yaml``, and what it names."""
    write_rows(folder / "own.jsonl", [row(f"own {i}") for i in range(200)])
    write_rows(folder / "val.jsonl", [row(f"val {i}") for i in range(20)])
    write_model(folder / "model")
    (folder / "own.yaml").write_text(OWN)


@pytest.fixture
def world(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the shipped assets, and ``own.yaml``: default.yaml with a local model and prompts of one's own."""
    fill(tmp_path, own_files)
    monkeypatch.setattr(resolvers, "ASSETS", assets)
    for name in ("RL_POLICY_MODEL", "RL_REWARD_MODEL", "RL_TRAIN_DATA", "RL_VALIDATION_DATA", "RL_REWARD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RL_PREP_MANIFEST", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compiled(world: Path) -> Compile:
    """Compile a shipped config with overrides on a machine: ``compiled("own.yaml", "grpo.seed=1")``."""

    def build(
        name: str,
        *overrides: str,
        place: Place = LAPTOP,
        engines: tuple[EngineName, ...] = ("embedded", "nemo_rl"),
        env: dict[str, str] | None = None,
        runs_dir: str = "runs",
        resume: bool = False,
    ) -> Plan:
        words = parse_overrides(list(enumerate(overrides, start=5)))
        resolved = load(CONFIGS, name, words, run_dir=f"{runs_dir}/RUN_ID", model=STEP.config)
        environment = {"TORCH_CUDA_ARCH_LIST": "9.0"} if env is None else env
        declared, folder = driven(STEP, engines), Path(runs_dir)
        return compile_job(Step(), resolved, declared, runs_dir=folder, place=place, env=environment, resume=resume)

    return build


@pytest.fixture
def compiled_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompileStep:
    """Compile any step with the shipped assets: ``compiled_step("dpo", "dpo.seed=1", config="tiny")``."""
    monkeypatch.chdir(tmp_path)

    def build(name: str, *overrides: str, config: str = "tiny", place: Place = LAPTOP) -> Plan:
        found = find_step(name)
        code = declaration(found)
        words = parse_overrides(list(enumerate(overrides, start=5)))
        resolved = load(found.config_dir, config, words, run_dir="runs/RUN_ID", model=code.config)
        return compile_job(found, resolved, code, runs_dir=Path("runs"), place=place)

    return build
