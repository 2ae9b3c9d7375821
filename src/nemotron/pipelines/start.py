"""From a chain to a pipeline on disk, and back to a chain when one goes on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemotron.compile.asked import command as without_secrets
from nemotron.config.overrides import Override, parse_overrides
from nemotron.errors import ArtifactError, NotFoundError, Origin, UsageError
from nemotron.pipelines.beside import slots
from nemotron.pipelines.chain import Chain, compile_chain
from nemotron.pipelines.file import read_pipeline, with_overrides
from nemotron.pipelines.state import NodeState, PipelineFolder, PipelineState, StateName, create, new_id
from nemotron.suggest import closest, listed


def compile_file(
    path: Path,
    overrides: Sequence[Override],
    runs_dir: Path,
    *,
    profile: str | None = None,
    named: Mapping[str, str] | None = None,
    rehearsal: bool = False,
) -> Chain:
    """Read and compile a pipeline.

    Raises:
        NemotronError: of every kind; nothing was started.
    """
    pipeline = with_overrides(read_pipeline(path), list(overrides))
    return compile_chain(pipeline, runs_dir, profile=profile, named=named, rehearsal=rehearsal)


def begin(
    chain: Chain,
    *,
    overrides: Sequence[Override] = (),
    profile: str | None = None,
    force: Iterable[str] = (),
    begin_with: str | None = None,
    until: str | None = None,
    side_by_side: int | None = None,
) -> PipelineFolder:
    """Make the folder of a new pipeline.

    Args:
        force: nodes that are done anew.
        begin_with: the node that is done anew with all that depends on it.
        until: the node after which it ends; only what that one needs is done.
        side_by_side: how many nodes work at once here; as many as the machine is enough for unless given.

    Raises:
        NotFoundError: there is no such node. UsageError: one is to be done anew behind the end, or none could work.
        OutputError: the folder cannot be written.
    """
    if side_by_side is not None and (not isinstance(side_by_side, int) or side_by_side < 1):
        message = f"`side_by_side` should be a whole number of nodes, at least 1, not {side_by_side!r}"
        raise UsageError(message, hint="leave it out for as many as this machine is enough for")
    forced, wanted = asked_for(chain, force=force, begin_with=begin_with, until=until)
    words = []
    for node in chain.nodes:
        mine = [one for one in overrides if one.path[0] == node.name]
        plain = [one.text.replace(f"{node.name}.", "", 1) for one in mine]
        cleaned = without_secrets(plain, node.plan.config, node.plan.secrets())
        for one, text, kept in zip(mine, plain, cleaned, strict=True):
            words.append(one.text if kept == text else _named(one, kept))
    state = planned(chain)
    for name in [node.name for node in chain.nodes]:
        begins: StateName = "waiting" if name in wanted else "left"
        state = state.with_node(name, state=begins, forced=name in forced)
    also: dict[str, Any] = {
        "words": tuple(words),
        "profile": profile,
        "side_by_side": slots(chain, wanted, side_by_side),
    }
    return create(chain.runs_dir, state.model_copy(update=also))


def asked_for(
    chain: Chain, *, force: Iterable[str], begin_with: str | None, until: str | None
) -> tuple[set[str], set[str]]:
    """The nodes that are done anew, and all that are done.

    Raises:
        NotFoundError: there is no such node. UsageError: one is to be done anew behind the end.
    """
    if isinstance(force, str):
        # From Python: its letters are no nodes.
        raise UsageError(f"`force` should be a list of nodes, not the text `{force}`", hint=f'pass `["{force}"]`')
    named = [_known(chain, name) for name in force]
    forced = set(named)
    if begin_with is not None:
        named.append(_known(chain, begin_with))
        forced |= chain.after(begin_with)
    wanted = _before(chain, _known(chain, until)) if until is not None else {node.name for node in chain.nodes}
    for name in named:
        if name not in wanted:
            message = f"`{name}` is to be done anew, and is not among what `{until}` needs"
            raise UsageError(message, hint=f"leave `--until {until}` out, or name a node before it")
    return forced, wanted


def planned(chain: Chain) -> PipelineState:
    """The state of a pipeline of which nothing was done yet."""
    nodes = tuple(
        NodeState(
            name=node.name,
            step=node.step.id,
            needs=node.needs,
            inserted=node.inserted,
            fingerprint=node.plan.fingerprint,
        )
        for node in chain.nodes
    )
    return PipelineState(
        id=new_id(chain.spec.name),
        name=chain.spec.name,
        title=chain.spec.title,
        file=str(chain.spec.path.absolute()),
        runs_dir=str(chain.runs_dir.absolute()),
        folder=str(Path.cwd()),
        named=dict(chain.names.known),
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        nodes=nodes,
    )


def reopen(folder: PipelineFolder) -> Chain:
    """The chain of a pipeline that goes on, which has to be what it was when it started.

    Raises:
        ArtifactError: its file or a config says something else now, or would from here.
        NemotronError: it does not compile any more.
    """
    state = folder.read()
    if state.folder is not None and Path.cwd() != Path(state.folder):
        message = f"the pipeline `{state.id}` was started in `{state.folder}`, and its relative paths begin there"
        raise ArtifactError(message, hint=f"`cd {shlex.quote(state.folder)}`, and give the command again")
    overrides = parse_overrides(list(enumerate(state.words, 1)))
    chain = compile_file(Path(state.file), overrides, Path(state.runs_dir), profile=state.profile, named=state.named)
    now = {node.name: node.plan.fingerprint for node in chain.nodes}
    was = {node.name: node.fingerprint for node in state.nodes}
    changed = [name for name in was if now.get(name) != was[name]] or [name for name in now if name not in was]
    if changed:
        message = f"the pipeline `{state.id}` was compiled for another config of {listed(changed)}"
        hint = f"`nemotron pipelines run {os.path.relpath(state.file)}` starts a new one, which takes what is the same"
        raise ArtifactError(message, hint=hint, origin=Origin(state.file))
    return chain


def _before(chain: Chain, name: str) -> set[str]:
    """A node with all that it needs."""
    found = {name}
    for node in reversed(chain.nodes):
        if node.name in found:
            found |= set(node.needs)
    return found


def _known(chain: Chain, name: str) -> str:
    names = [node.name for node in chain.nodes]
    if name not in names:
        guess = closest(name, names)
        hint = f"did you mean `{guess}`?" if guess else f"there are {listed(names)}"
        raise NotFoundError(f"there is no node `{name}`", hint=hint)
    return name


def _named(one: Override, word: str) -> str:
    """The cleaned word with the node in front of its key again."""
    prefix = word[: len(word) - len(word.lstrip("+~"))]
    return f"{prefix}{one.path[0]}.{word[len(prefix) :]}"
