"""``pytest tests/golden --golden-dir DIR`` checks whatever vector files lie in DIR (default: tests/golden/data).

A test takes part by naming the format it checks and asking for a case:

    @pytest.mark.golden("reward_scaling_shaping", part="scaling")
    def test_scaling(case: Case) -> None: ...

It then runs once per entry of the list ``scaling`` in every file of that stem, each under its own id; with
``part=None`` once per file. tests/golden/test_coverage.py names the files that no test checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden.golden_vectors import cases_of, golden_dir, golden_files


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse a missing or empty folder before anything is collected."""
    config.addinivalue_line(
        "markers", "golden(stem, part='cases'): check every case of the vector files of this format"
    )
    golden_dir(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turn the marker into one run per case."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    (stem,), part = marker.args, marker.kwargs.get("part", "cases")
    found = [pair for path in golden_files(metafunc.config, stem) for pair in cases_of(path, part)]
    metafunc.parametrize("case", [pytest.param(case, id=name) for name, case in found])


@pytest.fixture(autouse=True)
def on_the_device(pytestconfig: pytest.Config) -> Iterator[None]:
    """Every tensor of a vector is made on the device of ``--golden-device``."""
    import torch  # see tests/golden/tensors.py

    with torch.device(pytestconfig.getoption("--golden-device")):
        yield


@pytest.fixture(scope="session", name="golden_dir")
def golden_dir_fixture(pytestconfig: pytest.Config) -> Path:
    """The folder of vector files under test."""
    return golden_dir(pytestconfig)
