"""``RUN/nemo_rl/``: everything that NeMo-RL is started with, on storage that every node sees.

=================  ===================================================================================================
``config.yaml``    complete, resolved, absolute, with NeMo-RL's keys alone (:mod:`nemotron.engines.nemo_rl.config`)
``data/*.jsonl``   the rows (:mod:`nemotron.engines.nemo_rl.rows`)
``entry.py``       what runs the official script (:mod:`nemotron.engines.nemo_rl.entry`)
``launch.json``    version, words, working folder, names of environment variables, counts and hashes of the rows
``server.py``      where NeMo-Gym has a server of ours: what it starts (:mod:`nemotron.engines.nemo_rl.server`), and
``server.json``    the interpreter and the code that it hands over to
=================  ===================================================================================================
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nemotron
from nemotron.compile.paths import with_absolute_paths
from nemotron.config.dump import dump_yaml
from nemotron.data.inputs import Role
from nemotron.disk.atomic import write_atomic
from nemotron.disk.faults import output_errors
from nemotron.engines.nemo_rl import entry, server
from nemotron.engines.nemo_rl.config import OURS, nemo_rl_config, secret_variable, section_of, uses_gym
from nemotron.engines.nemo_rl.functions import scored_by_us
from nemotron.engines.nemo_rl.gym import SERVER, compares_itself
from nemotron.engines.nemo_rl.rows import Written, pair_sets, write_rows
from nemotron.engines.nemo_rl.version import CURRENT, Version
from nemotron.errors import NotAvailableError

NAME = "nemo_rl"
"""The folder, in that of the run."""
ROOT_VARIABLE = "NEMOTRON_NEMO_RL_ROOT"
PYTHON_VARIABLE = "NEMOTRON_NEMO_RL_PYTHON"


@dataclass(frozen=True, slots=True)
class Tree:
    """An installed NeMo-RL."""

    root: Path
    python: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder that is ready to be started."""

    path: Path
    argv: tuple[str, ...]
    """Without the interpreter."""
    rows: Mapping[Role, tuple[Written, ...]]

    @property
    def training_rows(self) -> int:
        """Rows to train on."""
        return sum(written.rows for written in self.rows["train"])


def find_tree(script: str, env: Mapping[str, str], version: Version = CURRENT) -> Tree:
    """The tree that holds the official scripts: the one that the environment names, the one whose package this
    interpreter imports, or the one of NeMo-RL's container.

    Raises:
        NotAvailableError: there is none with this script.
    """
    named = env.get(ROOT_VARIABLE)
    spec = None if named else find_spec("nemo_rl")
    candidates: list[tuple[Path, str]] = []
    if named:
        candidates.append((Path(named), sys.executable))
    elif spec is not None:
        folders = list(spec.submodule_search_locations or ())
        candidates += [(Path(folder).parent, sys.executable) for folder in folders]
    if not named:
        candidates.append((Path(version.root), version.python))
    for root, python in candidates:
        if (root / script).is_file():
            own = env.get(PYTHON_VARIABLE) or (version.python if Path(version.python).is_file() else python)
            return Tree(root.resolve(), own)
    looked = ", ".join(f"`{root}`" for root, _ in candidates)
    raise NotAvailableError(
        f"NeMo-RL's script `{script}` is not in {looked}",
        hint=f"run inside NeMo-RL's container, or name the root of its source tree in {ROOT_VARIABLE}",
    )


def prepare(
    folder: Path,
    config: Any,
    values: Mapping[str, Any],
    *,
    secrets: Mapping[str, str],
    metrics: Path,
    version: Version = CURRENT,
) -> Prepared:
    """Write the folder. What a killed attempt left of it is written over.

    Args:
        config: the typed config of the job.
        values: the same as plain values, without secrets.
        secrets: config key -> environment variable of every secret that is set.
        metrics: where ``entry.py`` tells what is measured.

    Raises:
        DataError: rows cannot be read or are not ones that NeMo-RL could be given.
        OutputError: the folder cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    values = with_absolute_paths(dict(values), config)
    shown = nemo_rl_config(values, folder=str(folder), secrets=secrets, pair_sets=pair_sets(config))
    rows = write_rows(config, values, folder / "data")
    write_atomic(folder / "entry.py", Path(entry.__file__).read_bytes())
    write_atomic(folder / "config.yaml", dump_yaml(shown).encode())
    if compares_itself(values) or scored_by_us(values):
        _write_server(folder)
    argv = launch_words(values, folder, metrics, version)
    launch = {
        **launch_of(argv, secrets, version),
        "data": {role: [asdict(written) for written in files] for role, files in rows.items()},
    }
    write_atomic(folder / "launch.json", json.dumps(launch, indent=2).encode() + b"\n")
    return Prepared(folder, argv, rows)


def _write_server(folder: Path) -> None:
    """The program, and this interpreter with the code that this process runs: NeMo-Gym's has neither."""
    write_atomic(folder / SERVER, Path(server.__file__).read_bytes())
    code = Path(nemotron.__file__).parents[1]
    said = {"python": sys.executable, "path": os.fspath(code)}
    write_atomic((folder / SERVER).with_suffix(".json"), json.dumps(said, indent=2).encode() + b"\n")


def launch_words(values: Mapping[str, Any], folder: Path, metrics: Path, version: Version = CURRENT) -> tuple[str, ...]:
    """The words after the interpreter."""
    script = version.script(section_of(values), gym=uses_gym(values))
    config = os.fspath(folder / "config.yaml")
    return (os.fspath(folder / "entry.py"), "--metrics", os.fspath(metrics), script, "--config", config)


def shown(
    values: Mapping[str, Any],
    config: Any,
    *,
    secrets: Mapping[str, str],
    named: Mapping[str, str],
    run: str,
    version: Version = CURRENT,
) -> dict[str, Any]:
    """What a dry run says: the config and the launch; nothing is read or written.

    Args:
        secrets: the secrets that are set, by key; their values are not looked at.
        named: config key -> the environment variable that the YAML names for it.
        run: the run folder.
    """
    folder = Path(run) / NAME
    variables = secret_variables_of(secrets, named)
    content = nemo_rl_config(values, folder=str(folder), secrets=variables, pair_sets=pair_sets(config))
    words = launch_words(values, folder, folder / "metrics-1.jsonl", version)
    return {"config": content, "launch": launch_of(words, variables, version)}


def launch_of(argv: tuple[str, ...], secrets: Mapping[str, str], version: Version) -> dict[str, Any]:
    """What ``launch.json`` says before the rows are known; values of variables are nowhere."""
    names = sorted(set(secrets.values()))
    return {"version": version.name, "argv": argv, "cwd": version.root, "environment": names}


def secret_variables_of(secrets: Iterable[str], named: Mapping[str, str]) -> dict[str, str]:
    """Config key -> environment variable of the secrets that NeMo-RL's sections hold; others are not passed on."""
    return {key: secret_variable(key, named) for key in secrets if key.partition(".")[0] not in OURS}
