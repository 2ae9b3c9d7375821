"""Options that must be known before any test folder is collected."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--golden-dir``; tests/golden/loader.py reads it."""
    parser.addoption(
        "--golden-dir",
        default=None,
        metavar="DIR",
        help="folder with golden vector files to check against (default: tests/golden/data)",
    )
