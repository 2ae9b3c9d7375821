"""The executor itself: sbatch, squeue, scontrol, sacct where it is there, scancel."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nemotron import snapshot
from nemotron.disk.untar import unpack_files
from nemotron.engines.nemo_rl.gym import served_beside
from nemotron.errors import ExecutorError, NemotronError, NotAvailableError
from nemotron.executors.base import How, JobState, Submission, Target, from_file, log_of
from nemotron.executors.environment import shown_environment
from nemotron.executors.shells import NO_COMMAND, Done, Here, Shell, Ssh
from nemotron.executors.slurm import script
from nemotron.executors.slurm.states import job_state, of_scontrol
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profile
from nemotron.profiles.model import SlurmProfile
from nemotron.runs.attempts import Handle
from nemotron.runs.folder import RunFolder

NAME = "slurm"
UPLOAD_TIMEOUT_S = 900.0
ARRAY = "array.sh"
_WAIT = "wait until some of your jobs have ended, or use another partition or QOS"
_LESS = (
    "ask for less (`time`, `nodes`, `cpus_per_task`, `gpus_per_node`, `mem`), or use another QOS: `sacctmgr show qos`"
)
_FULL = "the cluster's queue is full: submit again when jobs have ended"
_HINTS = (
    ("perjob", _LESS),
    ("violates accounting/qos policy", _WAIT),
    ("limit for pending or running jobs", _WAIT),
    ("time limit is invalid", "lower `time` of the profile: `sinfo --format='%P %l'` has the limit of each partition"),
    (
        "array specification",
        "`array = false` in the profile sends a job for each run; `scontrol show config` has MaxArraySize",
    ),
    ("node configuration", "ask for what a node of that partition has: `sinfo --format='%P %c %m %G'`"),
    ("qos", "`sacctmgr show associations user=$USER format=account,partition,qos` lists yours"),
    ("account", "`sacctmgr show associations user=$USER` lists your accounts"),
    ("partition", "`nemotron profiles check NAME` lists the partitions"),
    *((words, _FULL) for words in ("try again", "temporarily unavailable", "maxjobcount")),
)
"""What to do, by what Slurm says; the first that fits."""
SUBMIT_TIMEOUT_S = 180.0
"""sbatch asks a full queue again for two minutes. Left to itself it ends with a word; ended by us, it might submit the
job of a run that counts as refused."""
STATUS = "status.json"
SMALL_FILES = (STATUS, "metrics.jsonl", "samples.jsonl", "report.html", "job.json")
"""What a mirror has of a run; checkpoints stay where they are."""


class Slurm:
    """Batch jobs."""

    name = NAME
    ships_assets = True

    def target(self, profile: Profile, runs_dir: Path, run_id: str) -> Target:
        """Below ``remote_job_dir`` where that is said; over ssh, a mirror is kept here."""
        settings = _settings(profile)
        here = runs_dir.resolve() / run_id
        if settings.remote_job_dir is None:
            return Target(here, str(here))
        there = f"{settings.remote_job_dir.rstrip('/')}/runs/{run_id}"
        if settings.tunnel == "ssh":
            return Target(here, there, mirrored=True)
        return Target(Path(there), there)

    def plan(self, profile: Profile, job: CompiledJob, target: Target, number: int, how: How) -> Submission:
        """The script and the call of sbatch."""
        settings = _settings(profile)
        two_sided = job.engine == "embedded" and "only" in job.config and job.config["only"] is None
        judged = job.engine == "nemo_rl" and served_beside(job.config)
        text = script.batch_script(
            settings,
            name=_name(job.id, number),
            run_dir=target.there,
            number=number,
            how=how,
            two_sided=two_sided,
            judged=judged,
            ray=job.engine == "nemo_rl",
        )
        path = f"{target.there}/attempts/{number}/{script.SCRIPT}"
        return Submission(
            executor=NAME,
            profile=profile.name,
            run_dir=target.there,
            files={script.SCRIPT: text},
            request={"argv": ["sbatch", "--parsable", path], **_where(settings)},
            environment=shown_environment(profile, job, code_dir(settings, target)),
            # Slurm has no array of heterogeneous jobs.
            shared=None
            if (two_sided and settings.critic) or (judged and settings.judge) or not settings.array
            else tuple(script.shared_options(settings, how)),
        )

    def code_dir(self, profile: Profile, target: Target) -> str | None:
        """The folder on PYTHONPATH; None where the code is installed there."""
        return code_dir(_settings(profile), target)

    def details(self, profile: Profile, target: Target, number: int, job: CompiledJob) -> dict[str, object]:
        """Name, folders and login node: enough to ask about the job without the profile."""
        return {
            "job_name": _name(job.id, number),
            "job_id": None,
            "log": f"{target.there}/attempts/{number}/logs/{script.LOG}",
            "code_dir": self.code_dir(profile, target),
            "ssh": _where(_settings(profile)).get("ssh"),
        }

    def submit(self, run: RunFolder, submission: Submission, values: Mapping[str, str], handle: Handle) -> Handle:
        """Upload what is missing there, then one job: a job of this name that is known already is taken for it."""
        shell = shell_of(handle)
        extra = handle.model_extra or {}
        name, there = str(extra["job_name"]), str(extra["run_dir"])
        if handle_id := extra.get("job_id"):
            return handle.model_copy(update={"job_id": handle_id})
        self._ship_code(shell, extra)
        if extra["mirrored"]:
            _upload(shell, run.path, there, int(extra["number"]))
        known = self._by_name(shell, name) or self._sent(shell, submission.request["argv"], values, name)
        return handle.model_copy(update={"job_id": known})

    def together(self, submissions: Sequence[Submission]) -> Submission:
        """One array. What is in it stands in a folder beside the runs, as links to their scripts and logs."""
        first, name, folder = submissions[0], _array_name(submissions), _array_folder(submissions)
        text = script.array_script(first.shared or (), name=name, folder=folder, count=len(submissions))
        tasks = {f"{folder}/{number}": one.run_dir for number, one in enumerate(submissions)}
        argv = ["sbatch", "--parsable", f"{folder}/{ARRAY}"]
        return replace(first, files={ARRAY: text}, request={**first.request, "argv": argv, "tasks": tasks})

    def submit_together(
        self,
        runs: Sequence[RunFolder],
        submissions: Sequence[Submission],
        values: Mapping[str, str],
        handles: Sequence[Handle],
    ) -> list[Handle]:
        """Upload what is missing there, then one array: one of this name that is known already is taken for it."""
        shell, sent, name = shell_of(handles[0]), self.together(submissions), _array_name(submissions)
        self._ship_code(shell, handles[0].model_extra or {})
        for run, handle in zip(runs, handles, strict=True):
            extra = handle.model_extra or {}
            if extra["mirrored"]:
                _upload(shell, run.path, str(extra["run_dir"]), int(extra["number"]))
        if (known := self._by_name(shell, name)) is None:
            _write_array(shell, _array_folder(submissions), sent.files[ARRAY], handles)
            known = self._sent(shell, sent.request["argv"], values, name)
        return [
            handle.model_copy(update={"job_name": name, "job_id": f"{known}_{number}"})
            for number, handle in enumerate(handles)
        ]

    def state(self, handle: Handle) -> JobState:
        """What the controller says; of a job that it has forgotten, what the accounts say."""
        shell = shell_of(handle)
        try:
            job = self._job_of(shell, handle)
            return _state(shell, job) if job else JobState("lost", "it was never submitted")
        except NemotronError as error:
            return JobState("unknown", error.message)

    def read_log(self, handle: Handle, offset: int) -> bytes:
        """From the shared folder where it can be read here, else through ssh."""
        extra = handle.model_extra or {}
        path = log_of(handle)
        if not extra.get("mirrored"):
            return from_file(path, offset)
        quoted = shlex.quote(path)
        done = shell_of(handle).run(["sh", "-c", f"[ ! -e {quoted} ] || tail -c +{offset + 1} {quoted}"])
        return done.out

    def explain(self, handle: Handle, state: JobState) -> JobState:
        """Slurm calls a job FAILED when only its step ran out of memory, and says so in the output alone. One that a
        node could not start it calls COMPLETED, with exit code 0."""
        if state.state == "finished":
            return JobState("failed", "Slurm says COMPLETED, and the run has not finished: did the node start the job?")
        tail = self.read_log(handle, 0)[-4096:]
        told = b"oom-kill event" in tail or b": Out Of Memory" in tail or b"oom_kill" in tail
        return JobState("out_of_memory", "oom-kill event", state.exit_code) if told else state

    def cancel(self, handle: Handle) -> None:
        """scancel; the mark in the attempt's folder keeps the script from asking for another turn."""
        extra = handle.model_extra or {}
        shell = shell_of(handle)
        if (job := self._job_of(shell, handle)) is None:
            return
        mark = f"{extra['run_dir']}/attempts/{extra['number']}/cancelled"
        shell.run(["touch", mark])
        done = shell.run(["scancel", job])
        if done.code and "Invalid job id" not in done.err and "already completing" not in done.err:
            raise ExecutorError(f"Slurm does not cancel job {job}: {_reason(done)}")

    def fetch(self, run: RunFolder, handle: Handle) -> None:
        """Small files of a mirrored run, whole."""
        extra = handle.model_extra or {}
        if not extra.get("mirrored"):
            return
        there = shlex.quote(str(extra["run_dir"]))
        names = " ".join(SMALL_FILES)
        # Files that are not there yet are left out by the shell, not reported by tar.
        text = f"[ -d {there} ] || exit 0; cd {there} && "
        text += f"tar cf - $(for f in {names} attempts/*/logs; do [ ! -e $f ] || echo $f; done)"
        done = shell_of(handle).run(["sh", "-c", text], timeout_s=UPLOAD_TIMEOUT_S)
        if done.code:
            raise ExecutorError(f"cannot fetch the run from {extra['run_dir']}: {_reason(done)}")
        if not done.out:
            return  # it never got there
        try:
            unpack_files(done.out, run.path)
        except ValueError as error:
            raise ExecutorError(f"what came of the run from {extra['run_dir']} cannot be taken: {error}") from error

    def costs(self, handle: Handle) -> str | None:
        """Slurm gives back what a job had when it ends."""
        return None

    def release(self, handle: Handle, state: JobState) -> Handle:
        """Nothing was made for it alone."""
        return handle

    def check(self, profile: Profile) -> list[tuple[str, str]]:
        """Slurm answers, the partition is there, the folder can be written, the code can run."""
        settings = _settings(profile)
        shell = _shell(settings)
        found = []
        if settings.tunnel == "ssh":
            found.append(("ssh", f"{settings.host}: {shell.run(['uname', '-n']).text}"))
        version = shell.run(["sbatch", "--version"])
        if version.code:
            where = f"on `{settings.host}`" if settings.tunnel == "ssh" else "on this machine"
            raise ExecutorError(
                f"profile `{profile.name}`: sbatch does not work {where}: {_reason(version)}",
                hint='run this on the login node, or reach it from here: `tunnel = "ssh"` and `host` in the profile'
                if settings.tunnel == "local"
                else "`host` of the profile is a machine with Slurm's commands, the login node",
            )
        found.append(("slurm", version.text))
        for partition in {settings.partition, settings.run_partition, settings.batch_partition} - {None}:
            nodes = shell.run(["sinfo", "--noheader", "--partition", str(partition), "--format", "%D nodes, %a, %l"])
            if nodes.code or not nodes.text:
                known = shell.run(["sinfo", "--noheader", "--format", "%R"]).text.split()
                raise ExecutorError(f"there is no partition `{partition}`", hint=f"there are {', '.join(known)}")
            found.append((f"partition {partition}", nodes.text.splitlines()[0]))
        if folder := settings.remote_job_dir:
            done = shell.run(["mkdir", "-p", f"{folder}/runs", f"{folder}/code"])
            if done.code:
                raise ExecutorError(f"`{folder}` cannot be written there: {_reason(done)}")
            found.append(("remote_job_dir", folder))
        if not settings.contained:
            python = settings.python or "python3"
            done = shell.run([python, "-c", "import sys, pydantic, omegaconf; print(sys.version.split()[0])"])
            answer = done.text if not done.code else f"cannot import what nemotron needs: {_reason(done)}"
            if done.code:
                raise ExecutorError(f"`{python}` {answer}", hint="set `python` to one that can, or a container image")
            found.append(("python", f"{python} ({answer})"))
        return found

    def _ship_code(self, shell: Shell, extra: Mapping[str, object]) -> None:
        """Unpack this version's code there, unless it is there already."""
        folder = extra.get("code_dir")
        if not isinstance(folder, str):
            return
        if shell.run(["test", "-d", folder]).code == 0:
            return
        parent, draft = folder.rpartition("/")[0], f"{folder}.{time.time_ns():x}.tmp"
        # Whoever comes second finds the folder there and throws its own away.
        text = (
            f"set -e; umask 022; mkdir -p {shlex.quote(draft)}; tar xf - -C {shlex.quote(draft)}; "
            f"mv -T {shlex.quote(draft)} {shlex.quote(folder)} 2>/dev/null || rm -rf {shlex.quote(draft)}; "
            f"test -d {shlex.quote(folder)}"
        )
        done = shell.run(["bash", "-c", text], stdin=snapshot.archive(assets=True), timeout_s=UPLOAD_TIMEOUT_S)
        if done.code:
            raise ExecutorError(f"cannot bring the code to `{parent}`: {_reason(done)}")

    def _sent(self, shell: Shell, argv: Sequence[str], values: Mapping[str, str], name: str) -> str:
        """The id of the job that sbatch makes."""
        try:
            return _job_id(shell.run(argv, environment=values, timeout_s=SUBMIT_TIMEOUT_S))
        except ExecutorError:
            # The connection broke, or sbatch waited in vain for the controller's answer: whether the job was taken, its
            # name tells. Where that cannot be asked either, it is asked whenever somebody wants to know of the run.
            known = None
            with suppress(NemotronError):
                known = self._by_name(shell, name)
            if known is None:
                raise
            return known

    def _job_of(self, shell: Shell, handle: Handle) -> str | None:
        """Its id: the one that is kept, or that of a job which was sent although nobody heard the answer."""
        extra = handle.model_extra or {}
        if known := extra.get("job_id"):
            return str(known)
        return self._by_name(shell, str(name)) if (name := extra.get("job_name")) else None

    def _by_name(self, shell: Shell, name: str) -> str | None:
        """The job or array of that name, where Slurm knows one: names are unique, they hold a run's id.

        Raises:
            ExecutorError: Slurm does not say which jobs there are.
        """
        done = shell.run(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F"])
        if done.code:
            raise ExecutorError(f"Slurm does not say which jobs there are: {_reason(done)}", hint="try again later")
        if done.text:
            return done.text.splitlines()[-1].strip()
        try:
            # Left to itself sacct begins at midnight.
            rows = _accounts(shell, f"--name={name}", "--starttime=now-7days", "--format=JobID")
        except ExecutorError:
            # Accounts that do not answer keep no job from being submitted: the controller has answered.
            rows = []
        # Tasks of an array are `ARRAY_TASK`, parts of a heterogeneous job `JOB+PART`.
        return re.split(r"[_+]", rows[-1][0])[0] if rows else None


def code_dir(settings: SlurmProfile, target: Target) -> str | None:
    """The folder on PYTHONPATH; None where the code is installed there."""
    if settings.code == "installed":
        return None
    root = settings.remote_job_dir or str(Path(target.there).parent)
    return f"{root.rstrip('/')}/code/{snapshot.folder_name()}"


def shell_of(handle: Handle) -> Shell:
    """Where the commands of a handle run."""
    ssh = (handle.model_extra or {}).get("ssh")
    if not isinstance(ssh, dict):
        return _HERE
    return Ssh(ssh["host"], ssh.get("user"), ssh.get("identity"), tuple(ssh.get("options", ())))


def _shell(settings: SlurmProfile) -> Shell:
    if settings.tunnel == "local":
        return _HERE
    return Ssh(str(settings.host), settings.user, settings.identity, tuple(settings.ssh_options))


_HERE = Here()


def _where(settings: SlurmProfile) -> dict[str, object]:
    if settings.tunnel == "local":
        return {}
    ssh = {"host": settings.host, "user": settings.user, "identity": settings.identity}
    return {"ssh": {**{k: v for k, v in ssh.items() if v}, "options": list(settings.ssh_options)}}


def _settings(profile: Profile) -> SlurmProfile:
    assert isinstance(profile.settings, SlurmProfile)
    return profile.settings


def _name(run_id: str, number: int) -> str:
    return f"nemotron-{run_id}-{number}"


def _array_name(submissions: Sequence[Submission]) -> str:
    """After its first run; no other array begins with that."""
    return f"nemotron-{submissions[0].run_dir.rpartition('/')[2]}-array"


def _array_folder(submissions: Sequence[Submission]) -> str:
    return f"{submissions[0].run_dir.rpartition('/')[0]}/.arrays/{_array_name(submissions)}"


def _write_array(shell: Shell, folder: str, text: str, handles: Sequence[Handle]) -> None:
    """The script of an array, and links to the scripts and logs of its runs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(ARRAY)
        member.size, member.mode = len(text.encode()), 0o600
        tar.addfile(member, io.BytesIO(text.encode()))
        for number, handle in enumerate(handles):
            extra = handle.model_extra or {}
            attempt = f"{extra['run_dir']}/attempts/{extra['number']}"
            for name, target in (("sh", f"{attempt}/{script.SCRIPT}"), ("log", log_of(handle))):
                link = tarfile.TarInfo(f"{number}.{name}")
                link.type, link.linkname = tarfile.SYMTYPE, target
                tar.addfile(link)
    _unpack_there(shell, folder, buffer.getvalue())


def _job_id(done: Done) -> str:
    """The id that sbatch prints.

    Raises:
        ExecutorError: it refused; in Slurm's words.
    """
    if done.code:
        reason = _refusal(done)
        hint = next((hint for words, hint in _HINTS if words in reason.lower()), None)
        raise ExecutorError(f"Slurm refuses the job: {reason}", hint=hint)
    job, _, _cluster = done.text.splitlines()[-1].partition(";") if done.text else ("", "", "")
    if not job.isdecimal():
        raise ExecutorError(f"sbatch printed `{done.text[:200]}` instead of a job id")
    return job


def _refusal(done: Done) -> str:
    """In sbatch's last words; which limit is meant, it says before them."""
    words = [line.partition("error: ")[2] for line in done.err.splitlines() if line.startswith("sbatch: error: ")]
    limits = [word for word in words[:-1] if re.fullmatch(r"\w+Limit", word)]
    last = _reason(done).removeprefix("sbatch: error: ").removeprefix("Batch job submission failed: ")
    return ": ".join([last, *limits])


def _state(shell: Shell, job: str) -> JobState:
    done = shell.run(["scontrol", "--oneliner", "show", "job", job])
    if done.code == 0 and (told := of_scontrol(done.text)) is not None:
        return told[1]
    if done.code and "Invalid job id" not in done.err:
        return JobState("unknown", _reason(done))
    fields = f"--format={'JobID' if '_' in job else 'JobIDRaw'},State,ExitCode"
    for row in _accounts(shell, f"--jobs={job}", fields):
        if len(row) == 3 and row[0] == job:
            return job_state(row[1], "", row[2])
    return JobState("lost", "Slurm does not know the job any more")


def _accounts(shell: Shell, *words: str) -> list[list[str]]:
    """What the cluster's accounts say; nothing where it keeps none, which is how Slurm comes.

    Raises:
        ExecutorError: it keeps some, and they cannot be asked now.
    """
    try:
        done = shell.run(["sacct", "--noheader", "--allocations", "--parsable2", *words])
    except NotAvailableError:
        return []
    if done.code and done.code != NO_COMMAND and "storage is disabled" not in done.err:
        raise ExecutorError(f"the controller has no such job, and the accounts cannot be asked: {_reason(done)}")
    return [line.split("|") for line in done.text.splitlines()] if done.code == 0 else []


def _upload(shell: Shell, run: Path, there: str, number: int) -> None:
    """The small files of a new run, or what a further attempt adds: the status is newer there, once there is one."""
    names = ["job.json", f"attempts/{number}", STATUS, "profile.json"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            if (run / name).exists():
                tar.add(run / name, name)
    _unpack_there(shell, there, buffer.getvalue(), more="/checkpoints", once=STATUS)


def _unpack_there(shell: Shell, folder: str, archive: bytes, more: str = "", once: str = "") -> None:
    """Unpack; a file ``once`` that is there stays as it is."""
    quoted = shlex.quote(folder)
    unless = f" $([ ! -e {quoted}/{once} ] || echo --exclude={once})" if once else ""
    text = f"umask 077; mkdir -p {quoted}{more} && tar xf - -C {quoted} --no-same-owner{unless}"
    done = shell.run(["bash", "-c", text], stdin=archive, timeout_s=UPLOAD_TIMEOUT_S)
    if done.code:
        raise ExecutorError(f"cannot write `{folder}` on the cluster: {_reason(done)}")


def _reason(done: Done) -> str:
    lines = [line.strip() for line in done.err.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.code}"
