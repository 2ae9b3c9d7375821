"""Options that must be known before any test folder is collected, and what all tests share."""

from __future__ import annotations

import gc
import pickle
import signal
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# One example that meets a busy moment of the machine is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples on every run, so that a failure belongs to the change it follows. To look for new ones:
#   pytest --hypothesis-profile explore
settings.register_profile("repeatable", settings.get_profile("unhurried"), derandomize=True)
settings.register_profile("explore", settings.get_profile("unhurried"), print_blob=True)
settings.load_profile("repeatable")

# Of the half a million objects of torch, transformers and ten thousand tests none is ever garbage.
gc.set_threshold(50_000, 20, 50)

# Whatever a script starts in its background ignores Ctrl-C, and so does what that starts: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options that tests/golden reads."""
    parser.addoption(
        "--golden-dir",
        default=None,
        metavar="DIR",
        help="folder with golden vector files to check against (default: tests/golden/data)",
    )
    parser.addoption("--golden-device", default="cpu", metavar="DEVICE", help="where they are computed, e.g. cuda")


@pytest.fixture(autouse=True, scope="session")
def parse_shipped_configs_once() -> Iterator[None]:
    """Parsing a default.yaml takes most of a compile; every test gets a copy of one parse, by the fastest way."""
    from nemotron.config import layers, yaml
    from nemotron.config.origins import Node, shown
    from nemotron.manifest import STEPS

    @cache
    def parsed(path: Path, shown_as: str) -> bytes:
        return pickle.dumps(yaml.read_yaml(path))

    def read(path: Path) -> Node:
        return pickle.loads(parsed(path, shown(path))) if path.is_relative_to(STEPS) else yaml.read_yaml(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "read_yaml", read)
        yield


@pytest.fixture(autouse=True, scope="session")
def parse_interpolations_once() -> Iterator[None]:
    """Half of resolving a config is parsing the same few hundred texts; OmegaConf only reads what came of it."""
    from omegaconf import _utils, base

    with pytest.MonkeyPatch.context() as patch:
        for module in (_utils, base):
            patch.setattr(module, "parse", lru_cache(maxsize=4096)(module.parse))
        yield


@pytest.fixture(autouse=True, scope="session")
def measure_documents_once() -> Iterator[None]:
    """Whether a text is too deep or too large is asked of the same tokenizers again and again."""
    from nemotron.disk import documents

    usual = documents._refuse_large
    remembered = lru_cache(maxsize=64)(usual)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_refuse_large", lambda raw: (remembered if len(raw) < 1 << 20 else usual)(raw))
        yield


@pytest.fixture(autouse=True, scope="session")
def survey_shipped_data_once() -> Iterator[None]:
    """No test changes the thousands of shipped rows, which most commands look at."""
    from nemotron.compile.probes import survey
    from nemotron.config.resolvers import ASSETS

    usual = survey._survey
    shipped = cache(usual.__wrapped__)

    def look(files: tuple[tuple[Path, int, int], ...], *more: Any) -> survey.Survey:
        return (shipped if all(path.is_relative_to(ASSETS) for path, *_ in files) else usual)(files, *more)

    with pytest.MonkeyPatch.context() as patch:
        # As tests/in_process.py finds it: what was read elsewhere is forgotten.
        patch.setattr(look, "cache_clear", usual.cache_clear, raising=False)
        patch.setattr(look, "cache_parameters", usual.cache_parameters, raising=False)
        patch.setattr(survey, "_survey", look)
        yield
