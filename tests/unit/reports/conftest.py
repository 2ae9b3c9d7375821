"""Run folders as an engine would leave them."""

from tests.unit.runs.conftest import make_run

__all__ = ["make_run"]
