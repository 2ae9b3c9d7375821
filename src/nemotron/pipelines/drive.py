"""A chain at work on this machine: each node an ordinary run in a process of its own, as many at once as there are
slots for.

One thread decides, compiles and writes the state; it sleeps until one of the processes ends. So there is nothing to
lock, and a signal comes to the thread that knows all of them.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from nemotron.artifacts.made import made_by
from nemotron.compile.asked import asked
from nemotron.compile.plan import Plan
from nemotron.disk.faults import output_errors
from nemotron.errors import ArtifactError, CompileError, LimitError, NemotronError, OutputError
from nemotron.executors import apart, goes_on
from nemotron.executors.apart import Beside, Working
from nemotron.executors.elsewhere import say_submitted
from nemotron.job import Asked, CompiledJob, PipelineMember
from nemotron.outcome import interrupts_first, print_error, print_findings
from nemotron.pipelines.beside import cores_of
from nemotron.pipelines.chain import Binding, Chain, Node
from nemotron.pipelines.page import write_page
from nemotron.pipelines.reuse import same_work
from nemotron.pipelines.state import WELL, PipelineFolder, PipelineState, StateName
from nemotron.pipelines.submit import go_on, job_of, prepared
from nemotron.processes.termination import terminated_like_interrupted
from nemotron.profiles.load import Profile
from nemotron.runs.folder import RunFolder, new_run_id

ORPHAN_S = 60.0
"""Seconds in which the run of a command that was killed has noticed that, saved and ended."""


def say(text: str) -> None:
    """What a person is told."""
    print(text, file=sys.stderr, flush=True)


def work(chain: Chain, folder: PipelineFolder, *, command: Sequence[str]) -> int:
    """Work on a pipeline from where it stands to its end; a node that fails stops what depends on it and nothing else.

    Returns 0, or the exit code of the first node that did not end well.

    Raises:
        OutputError: another command works on it, or it cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the nodes that were at work have saved their state.
    """
    with folder.alone(), terminated_like_interrupted():
        driver = _Driver(chain, folder, command)
        try:
            driver.to_the_end()
        finally:
            write_page(folder, chain.runs_dir)
        return driver.told()


class _Driver:
    def __init__(self, chain: Chain, folder: PipelineFolder, command: Sequence[str]) -> None:
        self._chain, self._folder, self._command = chain, folder, tuple(command)
        self._state: PipelineState = folder.read()
        self._codes: list[int] = []
        self._working: dict[str, Working] = {}

    def to_the_end(self) -> None:
        """Begin every node as soon as what it needs is there and a slot is free, until none is left."""
        left = list(self._chain.nodes)
        try:
            while left or self._working:
                for node in self._ready(left):
                    left.remove(node)
                    self._node(node)
                if self._working:
                    self._wait()
        except KeyboardInterrupt:
            self._interrupted()
            raise
        finally:
            # Whatever ended this, nothing goes on that nobody waits for.
            apart.end_all(self._working.values())

    def _ready(self, left: Sequence[Node]) -> Iterator[Node]:
        """The nodes whose turn it is; asked for one at a time, as each may take a slot or open the way for the next."""
        for node in tuple(left):
            before = {*self._working, *(other.name for other in left)}
            free = node.profile is not None or len(self._working) < self._state.side_by_side
            if free and not before & set(node.needs):
                yield node

    def _wait(self) -> None:
        """Sleep until a node ends."""
        ended = set(wait([one.sentinel for one in self._working.values()]))
        for name in [name for name, one in self._working.items() if one.sentinel in ended]:
            code = self._working[name].code()
            del self._working[name]
            self._ended(name, code, None)

    def _interrupted(self) -> None:
        apart.end_all(self._working.values())
        for name, one in self._working.items():
            if one.code() == 0:
                self._ended(name, 0, None)  # it was done before it was told to end
            else:
                self._write(name, state="interrupted", exit_code=130, reason=None)
        self._working.clear()
        say(f"the pipeline goes on with `nemotron pipelines resume {self._folder.id}`")

    def _node(self, node: Node) -> None:
        """Begin a node, unless it is there or may not begin."""
        entry = self._state.node(node.name)
        if entry.state == "left" or (entry.state in WELL and self._run(node.name) is not None):
            return
        may_wait = WELL if node.profile is None else {*WELL, "submitted"}
        missing = [name for name in node.needs if self._state.node(name).state not in may_wait]
        if missing:
            reason = f"`{missing[0]}` is {self._state.node(missing[0]).state}"
            self._write(node.name, state="skipped", reason=reason)
            say(f"{node.name}: skipped, {reason}")
            return
        try:
            with interrupts_first():
                run = self._run(node.name)
                if node.profile is not None:
                    self._submit(node, node.profile, run)
                elif run is None:
                    self._begin(node)
                else:
                    self._go_on(node, run)
        except KeyboardInterrupt:
            self._write(node.name, state="interrupted", exit_code=130, reason=None)
            raise
        except NemotronError as error:
            print_error(error)
            code = error.finding_exit_code if isinstance(error, CompileError) else error.exit_code
            self._ended(node.name, code, error.message)

    def _begin(self, node: Node) -> None:
        """Begin a new run, unless one that has done the same stands in."""
        plan = self._compiled(node)
        job = plan.job(self._asked(node, plan))
        if self._reused(node, job):
            return
        self._write(node.name, state="running", run=plan.run_id, exit_code=None, reason=None)
        say(f"{node.name}: {plan.step}")
        with output_errors(self._chain.runs_dir):
            self._chain.runs_dir.mkdir(parents=True, exist_ok=True)
        self._start(node, apart.begin(job, self._chain.runs_dir, plan.secrets(), beside=self._beside(node)))

    def _start(self, node: Node, working: Working) -> None:
        self._working[node.name] = working
        working.start()

    def _beside(self, node: Node) -> Beside | None:
        """How a node shares the machine; None where nothing works at the same time in this pipeline."""
        slots = self._state.side_by_side
        if slots == 1:
            return None
        wanted = {one.name for one in self._state.nodes if one.state != "left"}
        return Beside(node.name, cores_of(self._chain, wanted, node.name, slots))

    def _asked(self, node: Node, plan: Plan) -> Asked:
        said = asked(plan, self._command, node.step.config_dir, node.code.config)
        return said.model_copy(update={"pipeline": PipelineMember(id=self._folder.id, node=node.name)})

    def _reused(self, node: Node, job: CompiledJob) -> bool:
        """Whether a run that did the same stands in for a node."""
        if self._state.node(node.name).forced:
            return False
        earlier = same_work(job, self._chain.runs_dir, self._needed(node))
        if earlier is None:
            return False
        say(f"{node.name}: reused, {earlier.id} did the same")
        self._write(node.name, state="reused", run=earlier.id, exit_code=0, reason=None)
        return True

    def _submit(self, node: Node, profile: Profile, run: RunFolder | None) -> None:
        """A job that waits for those that it needs; a run that was cut off goes on as one.

        Raises:
            NemotronError: of every kind; nothing was submitted.
        """
        waited_for = [name for name in node.needs if self._state.node(name).state == "submitted"]
        after = [job for name in waited_for if (job := job_of(self._made(name))) is not None]
        if run is not None:
            go_on(run, after, self._command)
        else:
            awaits = [one for one in node.bindings if one.node in waited_for]
            plan = self._compiled_for_later(node, awaits)
            # What cannot be looked at from here cannot be compared.
            known = not waited_for and all(plan.place.sees(Path(ref.path)) for ref in plan.inputs)
            if known and self._reused(node, plan.job(self._asked(node, plan))):
                return
            runs = {name: self._made(name) for name in waited_for}
            launch = prepared(plan, profile, partial(self._asked, node), awaits, runs, after)
            self._write(node.name, state="submitted", run=plan.run_id, exit_code=None, reason=None)
            run = launch.submit(self._chain.runs_dir)
        self._write(node.name, state="submitted", exit_code=None, reason=None)
        say_submitted(run)

    def _compiled_for_later(self, node: Node, awaits: Sequence[Binding]) -> Plan:
        """The plan against what is there, and against promises of what will be."""
        there = [one for one in node.bindings if one not in awaits]
        inputs = {one.key: str(made_by(self._made(one.node), one.type)) for one in there}
        inputs |= {one.key: one.promised for one in awaits}
        promised = {one.promised: self._chain.promised[one.promised] for one in awaits}
        # What an earlier run made here is read where it lies.
        shared = [self._made(one.node).path for one in there]
        plan = node.compile(self._chain.runs_dir, inputs, promised, shared)
        if not plan.ok:
            raise CompileError(plan.findings)
        return replace(plan, run_id=new_run_id(plan.step, node.name))

    def _go_on(self, node: Node, run: RunFolder) -> None:
        self._wait_for_orphan(run)
        if run.status().state == "finished":
            self._ended(node.name, 0, None)
            return
        self._write(node.name, state="running", exit_code=None, reason=None)
        say(f"{node.name}: going on with {run.id}")
        self._start(node, apart.begin_again(run, node.plan.secrets(), self._command, beside=self._beside(node)))

    def _compiled(self, node: Node) -> Plan:
        """The plan against the inputs, which are there now.

        Raises:
            CompileError: they are not what was promised. ArtifactError: one is not there.
        """
        inputs = {one.key: str(made_by(self._made(one.node), one.type)) for one in node.bindings}
        plan = node.compile(self._chain.runs_dir, inputs)
        if not plan.ok:
            raise CompileError(plan.findings)
        plan.require_entry()
        print_findings(one for one in plan.findings if one.severity == "warning")
        return replace(plan, run_id=new_run_id(plan.step, node.name))

    def _needed(self, node: Node) -> set[str]:
        """Types that other nodes take from this one; of the last one, everything that it promises."""
        taken = {one.type for other in self._chain.nodes for one in other.bindings if one.node == node.name}
        return taken or {one.type for one in node.plan.promises}

    def _run(self, name: str) -> RunFolder | None:
        """The run of a node; None where none was made, or none is there any more."""
        run = self._state.node(name).run
        path = self._chain.runs_dir / run if run is not None else None
        return RunFolder.open(path) if path is not None and (path / "job.json").is_file() else None

    def _made(self, name: str) -> RunFolder:
        run = self._run(name)
        if run is None:
            raise ArtifactError(f"the run of `{name}` is gone", hint="start the pipeline again")
        return run

    def _wait_for_orphan(self, run: RunFolder) -> None:
        """A run whose command was killed saves its state before it ends."""
        until = time.monotonic() + ORPHAN_S
        while goes_on(run):
            if time.monotonic() > until:
                raise OutputError(f"somebody works on run `{run.id}`", hint="wait until it ends, or cancel it")
            time.sleep(0.1)

    def _ended(self, name: str, code: int, reason: str | None) -> None:
        run = self._run(name)
        if code and reason is None and run is not None:
            reason = run.status().error
        state: StateName = "finished" if code == 0 else "stopped" if code == LimitError.exit_code else "failed"
        state = "interrupted" if code == 130 else state
        self._write(name, state=state, exit_code=code, reason=reason or _how(code))
        if code:
            self._codes.append(code)

    def _write(self, name: str, **changes: object) -> None:
        self._state = self._state.with_node(name, **changes)
        self._folder.write(self._state)

    def told(self) -> int:
        """Say how it ended; the exit code."""
        asked_for = [node for node in self._state.nodes if node.state != "left"]
        well = [node for node in asked_for if node.state in WELL]
        submitted = [node for node in asked_for if node.state == "submitted"]
        reused = sum(node.state == "reused" for node in well)
        again = f", {reused} of them reused" if reused else ""
        say(f"{self._folder.id}: {len(well)} of {len(asked_for)} nodes done{again}")
        if submitted:
            say(f"{len(submitted)} jobs submitted: `nemotron pipelines status {self._folder.id}` says how they stand")
        for node in asked_for:
            if node.state not in {*WELL, "submitted"}:
                say(f"  {node.name}: {node.state}" + (f": {node.reason}" if node.reason else ""))
        say(f"page: {_relative(self._folder.report)}")
        return self._codes[0] if self._codes else 0


def _how(code: int) -> str | None:
    """What an exit code says where nobody else does."""
    if code > apart.SIGNALLED:
        number = code - apart.SIGNALLED
        known = f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
        memory = ", as when memory runs out" if number == signal.SIGKILL else ""
        return f"its process was ended by signal {number}{known}{memory}"
    return f"exit code {code}" if code else None


def _relative(path: Path) -> str:
    from nemotron.runs.words import relative

    return relative(str(path))
