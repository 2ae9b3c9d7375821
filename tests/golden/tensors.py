"""Numbers of golden vectors as tensors, and how close is close enough.

Apart from the files, as the process that hands tests out to workers reads those and needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def tensor(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Nested lists, numbers and the strings ``inf``, ``-inf``, ``nan`` as a tensor."""

    def number(value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [number(item) for item in value]
        return float(value)

    return torch.tensor(number(values), dtype=dtype)


def assert_close(actual: Any, expected: Any, *, rtol: float, atol: float, what: str) -> None:
    """Compare numbers, lists or tensors element by element in float64: ``|a - e| <= atol + rtol * |e|``.

    Infinities must agree in sign, NaN only equals NaN, and shapes must agree.
    """
    left = actual.detach().double() if isinstance(actual, torch.Tensor) else tensor(actual, torch.float64)
    right = tensor(expected, torch.float64)
    torch.testing.assert_close(left, right, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{what}: {text}")
