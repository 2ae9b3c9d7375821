"""The whole chain compiled before its first node starts, each node against what its inputs *will* be.

What a node makes is promised by its plan; the next one finds the promise at a path that no file has, and its rules look
at the promise (:mod:`nemotron.promises`) where they would look at the files. When a node starts, its inputs are there,
and it is compiled again against them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nemotron.artifacts.made import IN_FOLDER, by_name
from nemotron.compile.plan import Plan, compile_job
from nemotron.config.known import keys
from nemotron.config.layers import Resolved, load
from nemotron.config.origins import PYTHON
from nemotron.config.origins import Node as Value
from nemotron.config.overrides import Override
from nemotron.disk.home import expanded
from nemotron.errors import CompileError, ConfigError, Finding, NemotronError, Origin
from nemotron.manifest import Declaration, Step, declaration, find_step, load_types
from nemotron.pipelines import bind
from nemotron.pipelines.file import NodeSpec, PipelineSpec, Taken
from nemotron.pipelines.order import finding, in_order
from nemotron.place import Place
from nemotron.profiles.load import Profile, Profiles
from nemotron.profiles.model import SlurmProfile
from nemotron.promises import Promise

PROMISED = Path("/pipeline")
"""What a node will make is called by paths below this one until it is there: `/pipeline/rm/checkpoint_hf`."""
OUTPUT = "output_dir"
_WRITTEN_KEY = re.compile(r"(?<=[`'+~])[A-Za-z_][\w.]*(?![\w.:])")
"""What may be a key in a hint: at the beginning of a word to type."""


@dataclass(frozen=True, slots=True)
class Binding:
    """An input of a node that another one makes."""

    key: str
    type: str
    node: str
    origin: Origin

    @property
    def promised(self) -> str:
        """The path by which it goes while it is only promised."""
        return str(PROMISED / self.node / IN_FOLDER.get(self.type, self.type))


class Names:
    """What `${artifact:RUN:TYPE}` means in a pipeline: looked up once, whoever makes a newer one while it runs."""

    def __init__(self, runs_dir: Path, known: Mapping[str, str] | None = None) -> None:
        """Those that are ``known`` already are looked up no more."""
        self._find = by_name(runs_dir)
        self.known = dict(known or {})
        """`RUN:TYPE` to path."""

    def __call__(self, run: str, kind: str) -> str:
        """The path. Raises NotFoundError or ArtifactError."""
        name = f"{run}:{kind}"
        if name not in self.known:
            self.known[name] = self._find(run, kind)
        return self.known[name]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that was compiled."""

    spec: NodeSpec
    step: Step
    code: Declaration
    bindings: tuple[Binding, ...] = ()
    inserted: bool = False
    """It converts between two others, and is not written in the file."""
    profile: Profile | None = None
    plan: Plan = field(repr=False)
    """Against promises."""
    names: Names = field(repr=False)

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The nodes before it."""
        return tuple(dict.fromkeys([*(one.node for one in self.bindings), *(name for name, _ in self.spec.after)]))

    def compile(
        self,
        runs_dir: Path,
        inputs: Mapping[str, str],
        promised: Mapping[str, Promise] | None = None,
        shared: Sequence[Path] = (),
    ) -> Plan:
        """The plan with the given paths for the keys that are bound.

        Args:
            promised: those of the paths that are still to be made.
            shared: folders that lie here as they do where the node runs.

        Raises:
            NemotronError: as `steps run` raises them.
        """
        place = _place(self.profile)
        place = replace(place, promised=promised or {}, shared=(*place.shared, *shared))
        return compile_node(
            self.spec, self.step, self.code, self.bindings, inputs, runs_dir, self.profile, place, self.names
        )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A pipeline that was compiled: what would run, in order."""

    spec: PipelineSpec
    nodes: tuple[Node, ...]
    runs_dir: Path
    names: Names

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    @property
    def promised(self) -> dict[str, Promise]:
        """What all nodes will make, by the paths under which it goes until then."""
        return {
            Binding("", promise.type, node.name, node.spec.origin).promised: promise
            for node in self.nodes
            for promise in node.plan.promises
        }

    def after(self, name: str) -> set[str]:
        """The nodes that depend on one, itself included."""
        found = {name}
        for node in self.nodes:
            if found & set(node.needs):
                found.add(node.name)
        return found


def compile_chain(
    pipeline: PipelineSpec,
    runs_dir: Path,
    *,
    profile: str | None = None,
    named: Mapping[str, str] | None = None,
    rehearsal: bool = False,
) -> Chain:
    """Compile every node; nothing is written.

    Args:
        profile: the one that nodes without a profile of their own run on.
        named: what names of artifacts meant when the pipeline began, where it goes on.
        rehearsal: nothing will be submitted, so that what a profile lacks is a warning.

    Raises:
        CompileError: what is wrong with the graph or with the configs of its nodes, all of it.
        NemotronError: there is no such profile, or it is none for pipelines.
    """
    if profile is not None:
        profile_of_pipeline(profile)  # asked for on the command line, so no node's fault
    order, findings = in_order(pipeline)
    if findings:
        raise CompileError(findings)
    making = _Making(order, runs_dir, profile, Names(runs_dir, named), rehearsal=rehearsal)
    for spec in order:
        making.add(spec)
    findings = [*making.findings, *_same_folders(making.nodes), *_places(making.nodes)]
    if any(one.severity == "error" for one in findings):
        raise CompileError(findings)
    return Chain(spec=pipeline, nodes=tuple(making.nodes), runs_dir=runs_dir, names=making.names)


class _Making:
    """Nodes that have been compiled so far, with what they promise."""

    def __init__(
        self, order: Sequence[NodeSpec], runs_dir: Path, profile: str | None, names: Names, *, rehearsal: bool
    ) -> None:
        self.nodes: list[Node] = []
        self.names = names
        self._rehearsal = rehearsal
        self._of_profiles: set[tuple[str, Origin | None]] = set()
        """What was found wrong with a profile, and where: said once, whoever else runs on it."""
        self.findings: list[Finding] = []
        self._runs_dir, self._profile = runs_dir, profile
        self._types = load_types()
        self._promised: dict[str, Promise] = {}
        self._declared = {spec.name: _declared(spec) for spec in order}
        """What each node makes by the manifest of its step, for who asks the wrong one."""
        self._broken: set[str] = set()
        self._profiles: dict[str, Profile] = {}
        self._no_profiles: set[str] = set()

    def add(self, spec: NodeSpec) -> None:
        """Bind a node to those before it, and compile it; one behind a broken node is not looked at."""
        if self._broken & {name for name, _ in spec.needs()}:
            self._broken.add(spec.name)
            return
        try:
            step = find_step(spec.step)
            bindings = tuple(self._bindings(spec, step))
            self._compile(spec, step, bindings)
        except CompileError as error:
            self._fail(spec, error.findings)
        except NemotronError as error:
            origin = error.origin or spec.origin
            found = Finding("error", "node", error.message, None, origin, error.hint, exit_code=error.exit_code)
            self._fail(spec, [found])

    def _fail(self, spec: NodeSpec, findings: Sequence[Finding]) -> None:
        self._broken.add(spec.name)
        self.findings += [of_node(spec, _as_typed(spec, one)) for one in findings]

    def _compile(self, spec: NodeSpec, step: Step, bindings: tuple[Binding, ...], *, inserted: bool = False) -> None:
        code, profile = declaration(step), self._profile_of(spec)
        place = replace(_place(profile), promised=self._promised)
        inputs = {one.key: one.promised for one in bindings}
        plan = compile_node(spec, step, code, bindings, inputs, self._runs_dir, profile, place, self.names)
        if profile is not None and plan.ok:
            from nemotron.executors.elsewhere import fitted

            plan = fitted(plan, profile, rehearsal=self._rehearsal)
        findings = [one for one in (*plan.findings, *bind.unread(spec, plan, bindings)) if one.severity == "error"]
        if findings:
            raise CompileError([one for one in findings if self._is_new(one)])
        if not self._rehearsal:
            plan.require_entry()
        node = Node(
            spec=spec,
            step=step,
            code=code,
            bindings=bindings,
            inserted=inserted,
            profile=profile,
            plan=plan,
            names=self.names,
        )
        self.nodes.append(node)
        self._promised.update({Binding("", one.type, spec.name, spec.origin).promised: one for one in plan.promises})

    def _is_new(self, found: Finding) -> bool:
        """Whether it was not said already of a node before, for it is the profile that has it."""
        known = (found.message, found.origin) in self._of_profiles
        if is_of_profile(found):
            self._of_profiles.add((found.message, found.origin))
        return not known

    def _profile_of(self, spec: NodeSpec) -> Profile | None:
        """The profile of a node. One that cannot be had is said once, whoever else wants it."""
        named = spec.profile or self._profile
        if named is None or named in self._profiles:
            return self._profiles[named] if named is not None else None
        if named in self._no_profiles:
            raise CompileError([])
        try:
            self._profiles[named] = profile_of_pipeline(named)
        except NemotronError:
            self._no_profiles.add(named)
            raise
        return self._profiles[named]

    def _bindings(self, spec: NodeSpec, step: Step) -> Iterator[Binding]:
        seen: dict[str, Origin] = {}
        for taken in spec.takes:
            key, wanted = bind.key_of(taken, step, self._types)
            if key in seen:
                hint = "leave one of them out"
                raise CompileError([finding("taken-twice", f"`{key}` is given twice", taken.origin, hint)])
            seen[key] = taken.origin
            for one in spec.overrides:
                if one.key == key:
                    message = f"`{key}` is set here, and `takes` of `{spec.name}` gives it too"
                    raise CompileError([finding("taken-twice", message, one.origin, "leave one of them out")])
            yield self._bound(taken, key, step, wanted)

    def _bound(self, taken: Taken, key: str, step: Step, wanted: Sequence[str]) -> Binding:
        """The binding to a node that makes one of the wanted types, or to one that converts what it makes."""
        makes = {one.type for one in self._node(taken.node).plan.promises}
        kind = bind.fitting(makes, wanted, self._types)
        if kind is not None:
            return Binding(key, kind, taken.node, taken.origin)
        for target in wanted:
            for source in sorted(makes):
                if (converter := self._types[source].convert_to.get(target)) is not None:
                    return Binding(key, target, self._converted(taken, source, target, converter), taken.origin)
        others = [name for name, kinds in self._declared.items() if bind.fitting(kinds, wanted, self._types)]
        raise CompileError([bind.nothing_fits(taken, key, step, wanted, makes, others)])

    def _converted(self, taken: Taken, source: str, target: str, converter: str) -> str:
        """The node that converts, inserted behind the one that is taken from unless it is there."""
        name = f"{taken.node}_{target.removeprefix('checkpoint_')}"
        if name in self._declared:
            message = f"`{taken.node}` has to be converted by a node `{name}`, and another one has that name"
            hint = f"take `{name}.{target}` if it is that conversion, or give it another name"
            raise CompileError([finding("taken-name", message, taken.origin, hint)])
        if not any(node.name == name for node in self.nodes):
            step = find_step(converter)
            key = next(one.bind[0] for one in step.consumes if one.type == source)
            parent = self._node(taken.node).spec
            spec = NodeSpec(name=name, step=step.id, profile=parent.profile, origin=taken.origin)
            self._compile(spec, step, (Binding(key, source, taken.node, taken.origin),), inserted=True)
        return name

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


def is_of_profile(found: Finding) -> bool:
    """Whether a profile has what was found, and not the node that runs on it."""
    return found.message.startswith("profile `")


def profile_of_pipeline(name: str) -> Profile:
    """A profile on which nodes can run: only Slurm lets a job wait for another, without anybody who stays awake.

    Raises:
        NotFoundError: there is none of that name. ConfigError: it is another cluster's, or cannot be read.
    """
    found = Profiles().get(name)
    kind = found.settings.kind
    if kind == "local":
        raise ConfigError(
            f"nodes of a pipeline run on this machine without a profile, and `{name}` is one for it",
            hint=f"leave `{name}` out",
        )
    if not isinstance(found.settings, SlurmProfile):
        message = f"a pipeline runs on this machine or on Slurm, and `{name}` is a profile for {kind.capitalize()}"
        hint = (
            f"jobs of {kind.capitalize()} cannot wait for each other: leave `{name}` out, give a profile with "
            f'`executor = "slurm"`, or run the steps one by one with `nemotron steps run STEP -r {name}`'
        )
        raise ConfigError(message, hint=hint)
    return found


def _declared(spec: NodeSpec) -> set[str]:
    """What a node makes by the manifest of its step; nothing where there is no such step, which its own error says."""
    try:
        return {one.type for one in find_step(spec.step).produces}
    except NemotronError:
        return set()


def compile_node(
    spec: NodeSpec,
    step: Step,
    code: Declaration,
    bindings: Sequence[Binding],
    inputs: Mapping[str, str],
    runs_dir: Path,
    profile: Profile | None,
    place: Place | None,
    names: Names,
) -> Plan:
    """The plan of one node whose bound keys have the given values.

    Raises:
        NemotronError: as `steps run` raises them.
    """
    words = [
        Override(
            "force",
            tuple(one.key.split(".")),
            Value(as_written(inputs[one.key]), one.origin),
            one.origin,
            f"{one.key}: ...",
        )
        for one in bindings
    ]
    overrides = [*_own_folder(spec, step), *spec.overrides, *words]

    def loaded(words: Sequence[Override]) -> Resolved:
        place = str(runs_dir / "RUN_ID")
        return load(step.config_dir, spec.config, words, run_dir=place, model=code.config, artifacts=names)

    resolved = loaded(overrides)
    if profile is not None:
        from nemotron.executors.elsewhere import with_time_limit

        resolved = with_time_limit(profile, resolved, overrides, loaded)
    return compile_job(step, resolved, code, runs_dir=runs_dir, place=place or _place(profile))


def as_written(path: str) -> str:
    """A path of ours as YAML has to write it: a folder may be called `${x}`, which would be taken for a key."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", path)


def _place(profile: Profile | None) -> Place:
    if profile is None:
        return Place.this_machine()
    from nemotron.executors.elsewhere import place_of

    return place_of(profile)


def _own_folder(spec: NodeSpec, step: Step) -> Iterator[Override]:
    """What a node makes lies in its run folder unless the file says otherwise: another run must not write over it."""
    keys = {key for artifact in step.produces for key in artifact.bind}
    if OUTPUT in keys and all(one.key != OUTPUT for one in spec.overrides):
        yield Override("force", (OUTPUT,), Value("${run_dir:}/output", spec.origin), spec.origin, OUTPUT)


def _same_folders(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Two nodes that write into one folder: the second would find the first one's work there."""
    seen: dict[Path, Node] = {}
    for node in nodes:
        for ref in node.plan.outputs:
            path = expanded(ref.path).absolute()
            if ref.key is None or "RUN_ID" in path.parts or not node.spec.origin:
                continue
            other = next((one for known, one in seen.items() if _overlap(known, path) and one is not node), None)
            if other is not None:
                origin = node.plan.resolved.origin(ref.key) or node.spec.origin
                message = f"`{other.name}` and `{node.name}` both write into `{ref.path}`"
                hint = f"give `{ref.key}` of one of them another folder, or leave it out: it is in the run folder then"
                yield finding("same-folder", message, origin, hint)
            seen[path] = node


def _places(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Nodes run here, or as jobs of one Slurm that wait for each other; what runs here cannot wait for a job."""
    jobs: dict[str, Node] = {}
    for node in nodes:
        profile, origin = node.profile, node.spec.origin
        if profile is None:
            if before := next((name for name in node.needs if name in jobs), None):
                message = f"`{node.name}` runs on this machine, and `{before}` before it is a job of a cluster"
                yield finding("pipeline-place", message, origin, f"give `{node.name}` a `profile` of that cluster, too")
            continue
        assert isinstance(profile.settings, SlurmProfile)
        other = next(iter(jobs.values()), node)
        if other.profile and getattr(other.profile.settings, "host", None) != profile.settings.host:
            message = f"`{node.name}` and `{other.name}` are jobs of two clusters, which cannot wait for each other"
            yield finding("pipeline-place", message, origin)
        jobs[node.name] = node


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _as_typed(spec: NodeSpec, found: Finding) -> Finding:
    """A finding about a word of the command line or of Python, whose keys begin with the node's name: said without it,
    it would be a word that no pipeline knows."""
    key, origin = found.key, found.origin
    if not key or origin is None or all(one.origin != origin for one in spec.overrides):
        return found
    if origin.argument is None and origin.source != PYTHON:
        return found
    known, section = keys(declaration(find_step(spec.step)).config), f"{key.rpartition('.')[0] or key}."

    def typed(text: str, *, said: bool, count: int = 0) -> str:
        return _WRITTEN_KEY.sub(lambda match: named(match[0], said=said), text, count=count)

    def named(word: str, *, said: bool) -> str:
        # What was typed is shown as it was. A node may be called as its section is: then that is a key, too, and right
        # only where the finding is about it.
        if f"{word}.".startswith(f"{spec.name}.{key}.") and (word not in known or said):
            return word
        # A section may take keys that no model knows.
        is_key = word in known or f"{word}.".startswith((f"{key}.", section)) or key.startswith(f"{word}.")
        return f"{spec.name}.{word}" if is_key else word

    message = typed(found.message, said=True, count=1)
    return replace(found, message=message, hint=typed(found.hint, said=False) if found.hint else None)


def of_node(spec: NodeSpec, found: Finding) -> Finding:
    """A finding with the node in front: keys are the same in many of them."""
    if found.name in ("unfitting-type", "taken-twice", "taken-name", "unknown-type", "ambiguous-type"):
        return found
    if is_of_profile(found):
        return found
    if found.name == "missing-key":
        hint = (
            f"write `{found.key}: ...` into its `overrides`, or add `{spec.name}.{found.key}=...` to the command line"
        )
        found = replace(found, hint=hint)
    key = f"{spec.name}.{found.key}" if found.key else None
    return replace(found, message=f"node `{spec.name}`: {found.message}", key=key, origin=found.origin or spec.origin)
