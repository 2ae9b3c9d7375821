"""``${artifact:RUN:TYPE}``: what a run made, by name. Written out before anything else is resolved, so that a job holds
the path, and the hash of what lies there with its other inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from nemotron.config.origins import Node, walk
from nemotron.errors import Finding, NemotronError

Artifacts = Callable[[str, str], str]
"""Run and artifact type -> path. Raises NemotronError where there is none."""
_BEGIN = "${artifact:"
_REFERENCE = re.compile(r"\$\{artifact:\s*(?P<run>[^{}]*?)\s*:\s*(?P<type>\w+)\s*\}")


def write_out(root: Node, artifacts: Artifacts) -> Iterator[Finding]:
    """Put paths in the place of names, in ``root`` itself; yields what cannot be found, or is no name."""
    for key, node in walk(root):
        if isinstance(node.value, str) and _BEGIN in node.value:
            try:
                node.value = _REFERENCE.sub(lambda match: artifacts(match["run"], match["type"]), node.value)
            except NemotronError as error:
                message = f"`{key}` cannot be resolved: {error.message}"
                yield Finding("error", "unresolved", message, key, node.origin, error.hint, exit_code=error.exit_code)
            else:
                if _BEGIN in node.value:
                    message = f"`{key}` names no artifact: `{node.value}`"
                    hint = "write `${artifact:RUN:TYPE}`, as in `${artifact:last:checkpoint_hf}`"
                    yield Finding("error", "unresolved", message, key, node.origin, hint)
