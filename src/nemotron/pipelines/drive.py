"""A chain at work on this machine: one node after the other, each an ordinary run in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemotron.artifacts.made import made_by
from nemotron.compile.asked import asked
from nemotron.compile.plan import Plan
from nemotron.disk.faults import output_errors
from nemotron.errors import ArtifactError, CompileError, LimitError, NemotronError, NotAvailableError, OutputError
from nemotron.executors import apart, goes_on
from nemotron.job import PipelineMember
from nemotron.outcome import print_error, print_findings
from nemotron.pipelines.chain import Chain, Node
from nemotron.pipelines.page import write_page
from nemotron.pipelines.reuse import same_work
from nemotron.pipelines.state import WELL, PipelineFolder, PipelineState, StateName
from nemotron.processes.termination import terminated_like_interrupted
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
        KeyboardInterrupt: Ctrl-C or SIGTERM; the node that was at work has saved its state.
    """
    with folder.alone(), terminated_like_interrupted():
        driver = _Driver(chain, folder, command)
        try:
            for node in chain.nodes:
                driver.node(node)
        finally:
            write_page(folder, chain.runs_dir)
        return driver.told()


class _Driver:
    def __init__(self, chain: Chain, folder: PipelineFolder, command: Sequence[str]) -> None:
        self._chain, self._folder, self._command = chain, folder, tuple(command)
        self._state: PipelineState = folder.read()
        self._codes: list[int] = []

    def node(self, node: Node) -> None:
        """Bring one node to its end, unless it is there or may not begin."""
        entry = self._state.node(node.name)
        if entry.state == "left" or (entry.state in WELL and self._run(node.name) is not None):
            return
        missing = [name for name in node.needs if self._state.node(name).state not in WELL]
        if missing:
            reason = f"`{missing[0]}` is {self._state.node(missing[0]).state}"
            self._write(node.name, state="skipped", reason=reason)
            say(f"{node.name}: skipped, {reason}")
            return
        try:
            run = self._run(node.name)
            code = self._begin(node) if run is None else self._go_on(node, run)
        except KeyboardInterrupt:
            self._write(node.name, state="interrupted", exit_code=130, reason=None)
            say(f"the pipeline goes on with `nemotron pipelines resume {self._folder.id}`")
            raise
        except NemotronError as error:
            print_error(error)
            code = error.finding_exit_code if isinstance(error, CompileError) else error.exit_code
            self._ended(node.name, code, error.message)
            return
        if code is not None:
            self._ended(node.name, code, None)

    def _begin(self, node: Node) -> int | None:
        """A new run, or one that has done the same; None where one stands in."""
        plan = self._compiled(node)
        member = PipelineMember(id=self._folder.id, node=node.name)
        said = asked(plan, self._command, node.step.config_dir, node.code.config).model_copy(
            update={"pipeline": member}
        )
        job = plan.job(said)
        if not self._state.node(node.name).forced:
            earlier = same_work(job, self._chain.runs_dir, self._needed(node))
            if earlier is not None:
                say(f"{node.name}: reused, {earlier.id} did the same")
                self._write(node.name, state="reused", run=earlier.id, exit_code=0, reason=None)
                return None
        self._write(node.name, state="running", run=plan.run_id, exit_code=None, reason=None)
        say(f"{node.name}: {plan.step}")
        with output_errors(self._chain.runs_dir):
            self._chain.runs_dir.mkdir(parents=True, exist_ok=True)
        return apart.start(job, self._chain.runs_dir, plan.secrets())

    def _go_on(self, node: Node, run: RunFolder) -> int:
        self._wait_for_orphan(run)
        if run.status().state == "finished":
            return 0
        self._write(node.name, state="running", exit_code=None, reason=None)
        say(f"{node.name}: going on with {run.id}")
        return apart.go_on(run, node.plan.secrets(), self._command)

    def _compiled(self, node: Node) -> Plan:
        """The plan against the inputs, which are there now.

        Raises:
            CompileError: they are not what was promised. ArtifactError: one is not there.
        """
        inputs = {one.key: str(made_by(self._made(one.node), one.type)) for one in node.bindings}
        plan = node.compile(self._chain.runs_dir, inputs)
        if not plan.ok:
            raise CompileError(plan.findings)
        if not plan.has_entry:
            hint = "set `engine=embedded`, or wait for a later version"
            raise NotAvailableError(f"the engine `{plan.engine}` is not available yet", hint=hint)
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
        self._write(name, state=state, exit_code=code, reason=reason or (f"exit code {code}" if code else None))
        if code:
            self._codes.append(code)

    def _write(self, name: str, **changes: object) -> None:
        self._state = self._state.with_node(name, **changes)
        self._folder.write(self._state)

    def told(self) -> int:
        """Say how it ended; the exit code."""
        asked_for = [node for node in self._state.nodes if node.state != "left"]
        well = [node for node in asked_for if node.state in WELL]
        reused = sum(node.state == "reused" for node in well)
        again = f", {reused} of them reused" if reused else ""
        say(f"{self._folder.id}: {len(well)} of {len(asked_for)} nodes done{again}")
        for node in asked_for:
            if node.state not in WELL:
                say(f"  {node.name}: {node.state}" + (f": {node.reason}" if node.reason else ""))
        say(f"page: {_relative(self._folder.report)}")
        return self._codes[0] if self._codes else 0


def _relative(path: Path) -> str:
    from nemotron.runs.words import relative

    return relative(str(path))
