"""Node groups: Lepton asks for them by id, people know them by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemotron.errors import ExecutorError
from nemotron.executors.lepton.answers import Anything, Rows
from nemotron.executors.lepton.api import Api


def resolve_groups(api: Api, specs: Iterable[dict[str, Any]]) -> None:
    """Write ids for the names that parts of a body hold."""
    places = [spec["affinity"] for spec in specs if spec.get("affinity", {}).get("allowed_dedicated_node_groups")]
    if not places:
        return
    known = _groups(api)
    for place in places:
        place["allowed_dedicated_node_groups"] = [
            known.get(name, name) for name in place["allowed_dedicated_node_groups"]
        ]


def node_group(api: Api, wanted: str) -> tuple[str, str]:
    """Line of a check about a node group, which has a name and an id. Raises ExecutorError."""
    groups = _groups(api)
    group = groups.get(wanted) or (wanted if wanted in groups.values() else None)
    if group is None:
        raise ExecutorError(
            f"there is no node group `{wanted}`", hint=f"there are {', '.join(sorted(groups)) or 'none'}"
        )
    nodes = api.ask(Anything, "GET", f"/dedicated-node-groups/{group}/nodes").root or []
    return f"node group {wanted}", f"{group}, {len(nodes)} nodes"


def _groups(api: Api) -> dict[str, str]:
    rows = api.ask(Rows, "GET", "/dedicated-node-groups").all
    return {str(row.metadata.name): str(row.metadata.id) for row in rows}
