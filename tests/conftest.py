"""Options that must be known before any test folder is collected."""

from __future__ import annotations

import pytest
from hypothesis import settings

# The same examples on every run, so that a failure belongs to the change it follows. To look for new ones:
#   pytest --hypothesis-profile explore
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--golden-dir``; tests/golden/loader.py reads it."""
    parser.addoption(
        "--golden-dir",
        default=None,
        metavar="DIR",
        help="folder with golden vector files to check against (default: tests/golden/data)",
    )
