"""What a check of held-out answers is, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Item = tuple[Mapping[str, Any], str, bool]
"""Row, response, whether the response ended by itself."""

Check = Callable[[Sequence[Item]], Sequence[Mapping[str, bool | None]]]
"""Many answers -> for each: property -> holds, or None where that cannot be said.

``fully_right`` is the property that counts as accuracy.
"""
