"""From an entry of ``takes`` to a config key, by what the manifests of both steps say."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from nemotron.compile.plan import Plan
from nemotron.errors import CompileError, Finding
from nemotron.manifest import Artifact, ArtifactType, Step, is_a
from nemotron.pipelines.file import NodeSpec, Taken
from nemotron.pipelines.order import finding
from nemotron.suggest import closest, listed

if TYPE_CHECKING:
    from nemotron.pipelines.chain import Binding

MODEL, WEIGHTS = "policy.model_name", "policy.pretrained_checkpoint"


def key_of(taken: Taken, step: Step, types: Mapping[str, ArtifactType]) -> tuple[str, Sequence[str]]:
    """The key that carries what is taken, and the types that it may have, the best first.

    Raises:
        CompileError: the step takes nothing of that type or key, or it is not clear which key is meant.
    """
    if taken.type is not None and taken.type not in types:
        guess = closest(taken.type, types)
        hint = f"did you mean `{guess}`?" if guess else f"there are {listed(types)}"
        raise CompileError([finding("unknown-type", f"there is no artifact type `{taken.type}`", taken.origin, hint)])
    if taken.what in types:
        return _by_type(taken, step, types)
    carried = [artifact for artifact in step.consumes if taken.what in artifact.bind]
    if not carried:
        names = [*dict.fromkeys(artifact.type for artifact in step.consumes), *_keys(step)]
        guess = closest(taken.what, names)
        hint = f"did you mean `{guess}`?" if guess else f"it takes {listed(names)}"
        message = f"`{step.id}` takes nothing by `{taken.what}`"
        raise CompileError([finding("unknown-type", message, taken.origin, hint)])
    wanted = [artifact.type for artifact in carried]
    if taken.type is not None:
        if not any(is_a(taken.type, one, types) for one in wanted):
            message = f"`{taken.what}` carries {listed(wanted)}, not `{taken.type}`"
            hint = f"write `{taken.what}: {taken.node}`"
            raise CompileError([finding("unfitting-type", message, taken.origin, hint)])
        return taken.what, [taken.type]
    return taken.what, wanted


def _by_type(taken: Taken, step: Step, types: Mapping[str, ArtifactType]) -> tuple[str, Sequence[str]]:
    fitting = [one for one in step.consumes if one.type == taken.what]
    fitting = fitting or [one for one in step.consumes if is_a(taken.what, one.type, types)]
    if not fitting:
        takes = list(dict.fromkeys(artifact.type for artifact in step.consumes))
        guess = closest(taken.what, takes)
        hint = f"did you mean `{guess}`?" if guess else f"it takes {listed(takes)}"
        raise CompileError([finding("unfitting-type", f"`{step.id}` takes no `{taken.what}`", taken.origin, hint)])
    required = [one for one in fitting if one.required]
    chosen: Artifact | None = fitting[0] if len(fitting) == 1 else required[0] if len(required) == 1 else None
    if chosen is None:
        keys = [key for one in fitting for key in one.bind]
        message = f"`{step.id}` takes `{taken.what}` for more than one purpose"
        hint = f"name the key: {listed(f'{key}: {taken.node}' for key in keys)}"
        raise CompileError([finding("ambiguous-type", message, taken.origin, hint)])
    return chosen.bind[0], [taken.what]


def _keys(step: Step) -> list[str]:
    return [key for artifact in step.consumes for key in artifact.bind]


def fitting(makes: Collection[str], wanted: Sequence[str], types: Mapping[str, ArtifactType]) -> str | None:
    """The type of ``makes`` that can be used where one of ``wanted`` is asked for."""
    for target in wanted:
        if target in makes:
            return target
        for made in sorted(makes):
            if is_a(made, target, types):
                return made
    return None


def nothing_fits(
    taken: Taken, key: str, step: Step, wanted: Sequence[str], makes: Collection[str], others: list[str]
) -> Finding:
    """The error for a node that makes nothing which the other could use, with the nearest fit."""
    hint = f"`{taken.node}` makes {listed(sorted(makes))}" if makes else f"`{taken.node}` makes nothing"
    if "prepared_data" in makes and any(one.endswith("_jsonl") for one in wanted):
        hint = f"its rows are taken through their manifest: `prepared_data: {taken.node}`"
        if all(one.type != "prepared_data" for one in step.consumes):
            hint = (
                f"its rows are shards behind a manifest, and `{step.id}` takes none: let its `step.toml` consume "
                "`prepared_data` (docs/guides/write-a-step.md), or give it a file"
            )
    elif others:
        hint += f"; `{others[-1]}` makes it"
    message = f"`{key}` needs {' or '.join(f'`{one}`' for one in wanted)}, and `{taken.node}` makes none"
    return finding("unfitting-type", message, taken.origin, hint)


def unread(spec: NodeSpec, plan: Plan, bindings: Sequence[Binding]) -> Iterator[Finding]:
    """What a node takes and would not use: weights that come from somewhere else."""
    keys = {one.key: one for one in bindings}
    if MODEL in keys and f"{WEIGHTS}.path" not in keys and plan.resolved.get(WEIGHTS) is not None:
        message = f"`{spec.name}` takes a model, and its weights come from `{WEIGHTS}`"
        yield finding("not-read", message, keys[MODEL].origin, f"write `~{WEIGHTS}:` into its `overrides`")
