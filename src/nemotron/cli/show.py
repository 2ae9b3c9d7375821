"""What `steps show` prints: one screen about a step, or all of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from nemotron.cli.render import print_block, print_title

if TYPE_CHECKING:
    from nemotron.config.describe import Parameter
    from nemotron.config.explain import Explained
    from nemotron.manifest import Artifact, Step

T = TypeVar("T")


def print_overview(step: Step, rows: Sequence[Parameter]) -> None:
    """What the step takes and makes, what is usually changed, and how many parameters are where: one screen."""
    from nemotron.config.describe import value_of

    _print_head(step)
    width = max((len(artifact.type) for artifact in (*step.consumes, *step.produces)), default=0)
    for artifact in _under("takes", step.consumes):
        keys = ", ".join(artifact.bind) or "-"
        print(f"  {artifact.type.ljust(width)}  {keys}{'' if artifact.required else '  (optional)'}")
    made = {artifact.type: artifact.bind for artifact in step.produces}
    if made:
        print_title("makes")
        print_block(", ".join(f"{kind} ({', '.join(bind)})" if bind else kind for kind, bind in made.items()))
    for key in _under("often changed (value in default.yaml)", step.common):
        print(f"  {key} = {value_of(step.config_dir, rows, key)}")
    counts = Counter(row.name.partition(".")[0] for row in rows if not row.section)
    sections = {row.name for row in rows if row.section}
    if counts:
        print_title("parameters")
        print_block(", ".join(f"{name} ({n})" if name in sections else name for name, n in counts.items()))
    print_title("commands")
    commands = {
        f"run {step.id} -c NAME": f"{', '.join(step.configs)}, or a file of yours",
        f"run {step.id} -c NAME --dry-run": "check it and print the plan",
    }
    tops = [key.partition(".")[0] for key in step.common]
    if first := next((name for name in tops if name in sections), next(iter(counts), None)):
        commands[f"show {step.id} --params {first}"] = "parameters below a key: type, value, meaning"
    commands[f"show {step.id} --all"] = "every parameter, strategies, known errors"
    width = max(map(len, commands))
    for command, meaning in commands.items():
        print(f"  nemotron steps {command.ljust(width)}  {meaning}")


def print_everything(step: Step, rows: Sequence[Parameter]) -> None:
    """Artifacts with their meaning, every parameter, strategies and known errors."""
    _print_head(step)
    _print_artifacts("consumes", step.consumes)
    _print_artifacts("produces", step.produces)
    print_title("examples")
    for name in step.configs:
        print(f"  nemotron steps run {step.id}{'' if name == 'default' else f' -c {name}'}")
    print(f"  nemotron steps run {step.id} -c {step.configs[-1]} --dry-run")
    print_parameters(_under("parameters (value in default.yaml)", rows))
    for strategy in _under("strategies", step.strategies):
        print_block(f"{strategy.when}: {strategy.then}")
    for known_error in _under("errors", step.errors):
        print_block(f"{known_error.name}: {known_error.recovery}")


def print_parameters(rows: Sequence[Parameter]) -> None:
    """Value in default.yaml, type and meaning of each parameter."""
    for row in rows:
        if row.section:
            print(f"\n  {row.name}.*" + (f"  {row.description}" if row.description else ""))
            continue
        value = "not set" if row.source == "none" else json.dumps(row.default, ensure_ascii=False, default=str)
        print(f"  {row.name} = {value}")
        print_block(f"{row.type}. {row.description}", indent=6)


def _under(title: str, entries: Sequence[T]) -> Sequence[T]:
    """What stands under a title, which is printed where there is something."""
    if entries:
        print_title(title)
    return entries


def _print_head(step: Step) -> None:
    print(f"{step.id}: {step.title}")
    print_block(step.description)


def _print_artifacts(title: str, artifacts: Sequence[Artifact]) -> None:
    for artifact in _under(title, artifacts):
        print(f"  {artifact.type}{'' if artifact.required else ' (optional)'}")
        print_block(artifact.description, indent=4)
        for key in artifact.bind:
            print(f"    key: {key}")


def print_explained(found: Explained, indent: int = 0) -> None:
    """A key, its value, and every layer that wrote it; then the same of the keys that it refers to."""
    pad = " " * indent
    print(f"{pad}{found.key} = {found.text}")
    if found.meaning:
        print_block(found.meaning, indent=indent + 2)
    width = max((len(str(layer.origin)) for layer in found.layers), default=0)
    for layer in found.layers:
        print(f"{pad}  {str(layer.origin).ljust(width)}  {layer.text}")
    if not found.layers:
        print(f"{pad}  no layer sets it")
    for source in found.sources:
        print_explained(source, indent + 2)
