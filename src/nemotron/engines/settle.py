"""Inputs that were promised when a job was written: found when its run starts, and the job is checked against them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from nemotron.artifacts.inputs import named_inputs
from nemotron.artifacts.made import made_by
from nemotron.compile.plan import Surroundings
from nemotron.config.layers import Resolved
from nemotron.errors import ArtifactError, CompileError, NemotronError
from nemotron.job import CompiledJob
from nemotron.manifest import declaration, find_step
from nemotron.outcome import print_findings
from nemotron.place import Place
from nemotron.runs.folder import RunFolder


def settled(job: CompiledJob, runs_dir: Path) -> CompiledJob:
    """The job with the paths of what it waited for, and with these among its inputs.

    Raises:
        ArtifactError: a run that it waits for has not made it.
        CompileError: it is not what was promised.
    """
    for one in job.awaits:
        try:
            path = made_by(RunFolder.open(Path(one.run)), one.type)
        except NemotronError as error:
            raise ArtifactError(f"`{one.key}` waits for another run: {error.message}", hint=error.hint) from error
        job = job.relocated(Path(one.path), path)
    code = declaration(find_step(job.step))
    # References were followed when the job was written, so its values are all there is to know.
    resolved = Resolved(job.config, job.config, {}, ())
    where = Surroundings(Place.this_machine(), os.environ, runs_dir, resume=True)
    found = code.preflight(job.settings(code.config), resolved, where)
    findings = [replace(one, origin=None) for one in found.findings]
    if any(one.severity == "error" for one in findings):
        raise CompileError(findings)
    print_findings(one for one in findings if one.severity == "warning")
    # As a job names them that is compiled for this place when they are there: what was done is known by that.
    named = named_inputs(one for one in found.inputs if job.place.is_here or not one.loose)
    return job.model_copy(update={"awaits": (), "inputs": named})
