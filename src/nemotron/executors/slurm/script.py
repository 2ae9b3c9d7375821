"""The batch script: what Slurm is asked for, and one line that starts the worker.

Nothing that a user wrote is interpolated into shell text unquoted, and no secret stands in it: the job's environment
travels beside the script.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from nemotron.errors import EngineError
from nemotron.executors.base import How
from nemotron.processes.notice import FILE as notice_file
from nemotron.profiles.model import CriticGroup, JudgeGroup, SideGroup, SlurmProfile

LOG = "slurm.log"
"""In the attempt's ``logs/``: what the job prints."""
SCRIPT = "job.sh"


def batch_script(
    profile: SlurmProfile,
    *,
    name: str,
    run_dir: str,
    number: int,
    how: How,
    two_sided: bool = False,
    judged: bool = False,
    ray: bool = False,
) -> str:
    """The script of attempt ``number`` at the run in ``run_dir``.

    Args:
        two_sided: the step has a critic's side, which gets machines of its own where the profile gives it some.
        judged: a judge is served beside the job, on the machine that the profile gives it.
        ray: the engine needs a Ray over the nodes of the profile, where these are several.
    """
    ray = ray and profile.nodes > 1
    critic = profile.critic if two_sided else None
    judge = profile.judge if judged else None
    side = critic or judge
    own = [_option("job-name", name), _log_option(f"{run_dir}/attempts/{number}/logs/{LOG}")]
    options = [*own, *shared_options(profile, how)]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options)]
    if side is not None:
        lines += ["#SBATCH hetjob", *(f"#SBATCH {option}" for option in _side_options(profile, side, name))]
    lines += ["", "set -euo pipefail", "umask 077"]
    attempt = f"{run_dir}/attempts/{number}"
    if profile.contained:
        lines += _image_lines(profile, force_squash=how.force_squash)
    else:
        lines += profile.startup_commands
    python = profile.python or "python3"
    if critic is not None:
        lines += _critic_lines(profile, critic, python, run_dir, attempt)
    if judge is not None:
        lines += _judge_lines(profile, judge, python, run_dir, attempt)
    first = ["--het-group=0"] if side is not None else []
    if ray:
        lines += _ray_lines(profile, python, attempt, *first)
    # The notice of the end goes to this shell alone (`B:`): Slurm would send it to every process of the step, and those
    # that do not know it, such as a model server, would end.
    notice = shlex.quote(f"{attempt}/{notice_file}")
    group = first
    worker = how.worker(python, run_dir, number)
    if ray:
        # Ray's daemons have the GPUs; the driver stands beside the first of them.
        none = ["--gres=none"] if profile.gres else ["--gpus-per-node=0"] if profile.gpus_per_node else []
        group = [*first, "--overlap", "--relative=0", *none]
        worker = [*_ray_node(python), "wait", _ray_file(attempt), str(profile.nodes), *worker]
    lines += [
        "",
        f"trap {shlex.quote(f'touch {notice}')} USR1",
        f"{_srun(profile, *group)} {_task(profile, worker)} &",
        "task=$!",
        *(_ray_watch(attempt) if ray else ()),
        "# A trap ends `wait` early; of a task that is gone bash remembers how it ended.",
        'while kill -0 "$task" 2>/dev/null; do wait "$task" || true; done',
        "code=0",
        'wait "$task" || code=$?',
    ]
    if ray:
        lines += [
            "# Without a node of its Ray the run may fail before the watch has seen why.",
            f'case "$code" in 0|130) ;; *) {_for_seconds(5, f"[ ! -e {_ray_failed(attempt)} ]")} ;; esac',
            "# What a task says that was told to end is no word of the run's, least of all that it wants another turn.",
            f"[ ! -e {_ray_failed(attempt)} ] || code={EngineError.exit_code}",
        ]
    lines += _end_lines(critic=critic is not None, judge=judge is not None, ray=ray)
    if profile.requeue:
        lines += [
            "# 130: the run has saved a checkpoint and stopped in time; it goes on when the job runs again.",
            f'if [ "$code" = 130 ] && [ ! -e {shlex.quote(f"{attempt}/cancelled")} ]; then',
            '  scontrol requeue "$SLURM_JOB_ID" && exit 0',
            "fi",
        ]
    return "\n".join([*lines, 'exit "$code"', ""])


def _end_lines(*, critic: bool, judge: bool, ray: bool) -> Iterator[str]:
    """What ends with the worker."""
    if critic:
        yield from (
            "# The critic ends by itself when its actor leaves; one that does not is ended.",
            _for_seconds(60, 'kill -0 "$critic" 2>/dev/null'),
            'kill "$critic" 2>/dev/null || true',
        )
    if judge:
        yield 'kill "$judge" 2>/dev/null || true'
    if ray:
        yield 'kill "$watch" "$ray" 2>/dev/null || true'
    for name in [*(["judge"] if judge else []), *(["ray"] if ray else [])]:
        yield _for_seconds(30, f'kill -0 "${name}" 2>/dev/null')


def _for_seconds(most: int, true: str) -> str:
    """Wait while that is true, but not longer."""
    return f"for _ in $(seq {most}); do {true} || break; sleep 1; done"


def _task(profile: SlurmProfile, words: list[str]) -> str:
    """A task of srun: in a container, after the lines that prepare it."""
    if not (profile.contained and profile.startup_commands):
        return shlex.join(words)
    return shlex.join(["bash", "-c", "\n".join([*profile.startup_commands, f"exec {shlex.join(words)}"])])


def _critic_lines(profile: SlurmProfile, critic: CriticGroup, python: str, run_dir: str, attempt: str) -> list[str]:
    """Start the critic on its machines. It says in a file where it answers; the token of both sides is in no file."""
    announced = f"{attempt}/critic.json"
    words = [python, "-m", "nemotron.rl.critic", "--job", f"{run_dir}/job.json", "--host", "0.0.0.0"]
    words += ["--threads", str(critic.cpus_per_task or 1), "--token-env", "NEMOTRON_CRITIC_TOKEN"]
    words += ["--announce", announced]
    srun = _srun(profile, "--het-group=1", "--input=none", of=critic)
    file, failed = shlex.quote(announced), shlex.quote(f"{announced}.failed")
    log = shlex.quote(f"{attempt}/logs/critic.log")
    return [
        "",
        f"rm -f {file} {failed}",
        "NEMOTRON_CRITIC_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')",
        f"export NEMOTRON_CRITIC_TOKEN NEMOTRON_CRITIC_FILE={file}",
        f"( {srun} {_task(profile, words)} > {log} 2>&1 || true; touch {failed} ) &",
        "critic=$!",
    ]


def _judge_lines(profile: SlurmProfile, judge: JudgeGroup, python: str, run_dir: str, attempt: str) -> list[str]:
    """Start the judge on its machine. It says in a file where it answers; the token of the job is in no file.

    The run itself watches for the file that says that it has ended, and ends with its words.
    """
    announced, logs = f"{attempt}/judge.json", f"{attempt}/logs"
    words = [python, "-m", "nemotron.judge.beside", "--job", f"{run_dir}/job.json"]
    words += ["--announce", announced, "--log", f"{logs}/vllm.log"]
    srun = _srun(profile, "--het-group=1", "--input=none", of=judge)
    file, failed = shlex.quote(announced), shlex.quote(f"{announced}.failed")
    return [
        "",
        f"rm -f {file} {failed}",
        "NEMOTRON_JUDGE_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')",
        f"export NEMOTRON_JUDGE_TOKEN NEMOTRON_JUDGE_FILE={file}",
        "(",
        f"  {srun} {_task(profile, words)} > {shlex.quote(f'{logs}/judge.log')} 2>&1 &",
        "  step=$!",
        """  trap 'kill "$step" 2>/dev/null' TERM""",
        """  while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done""",
        f"  touch {failed}",
        ") &",
        "judge=$!",
    ]


def _ray_watch(attempt: str) -> list[str]:
    """What becomes of Ray becomes of the run: without a node it would wait for ever."""
    return [
        "# Without a node of its Ray the run would wait for ever.",
        "(",
        '  while kill -0 "$ray" 2>/dev/null; do sleep 2; done',
        '  echo "error: Ray has ended on a node of this job: see ray.log beside this file" >&2',
        f"  touch {_ray_failed(attempt)}",
        '  kill "$task" 2>/dev/null || true',
        ") &",
        "watch=$!",
    ]


def _ray_lines(profile: SlurmProfile, python: str, attempt: str, *group: str) -> list[str]:
    """Start Ray on every node; all processes of the job share a token, which is in no file."""
    file, log = _ray_file(attempt), shlex.quote(f"{attempt}/logs/ray.log")
    words = [*_ray_node(python), "up", file, str(profile.gpus_per_node or 0)]
    srun = _srun(profile, *group, "--overlap", "--input=none", nodes=profile.nodes)
    return [
        "",
        f"rm -f {shlex.quote(file)} {_ray_failed(attempt)}",
        "RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')",
        "export RAY_AUTH_TOKEN RAY_AUTH_MODE=token",
        f"{srun} {_task(profile, words)} > {log} 2>&1 &",
        "ray=$!",
    ]


def _ray_node(python: str) -> list[str]:
    return [python, "-m", "nemotron.executors.slurm.ray_node"]


def _ray_file(attempt: str) -> str:
    return f"{attempt}/ray.address"


def _ray_failed(attempt: str) -> str:
    """A file that says so, quoted."""
    return shlex.quote(f"{_ray_file(attempt)}.failed")


def image_file(profile: SlurmProfile) -> str | None:
    """Where the imported image lies; None where the image is such a file itself, or there is none.

    A name without a digest may mean another image tomorrow; the imported one stays until ``--force-squash``.
    """
    image = profile.container_image
    if image is None or image.startswith("/"):
        return None
    folder = profile.squash_dir or f"{profile.remote_job_dir}/images"
    return f"{folder}/{re.sub(r'[^A-Za-z0-9._-]+', '+', image)}.sqsh"


def array_script(shared: Sequence[str], *, name: str, folder: str, count: int) -> str:
    """The script of an array: task N goes on as the script of its own run, which lies in ``folder`` as ``N.sh``.

    What Slurm prints of task N goes into ``N.log`` there, a link to the log in the run's folder.
    """
    pattern = f"{folder.replace('%', '%%')}/%a.log"
    options = [_option("job-name", name), _option("output", pattern), f"--array=0-{count - 1}", *shared]
    task = f'{shlex.quote(folder)}/"$SLURM_ARRAY_TASK_ID".sh'
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "", f"exec bash {task}", ""])


def _log_option(log: str) -> str:
    """A per cent sign begins a pattern of Slurm's."""
    return _option("output", log.replace("%", "%%"))


def shared_options(profile: SlurmProfile, how: How) -> Iterator[str]:
    """All that jobs of one profile have in common."""
    yield "--open-mode=append"
    partition = (profile.run_partition if how.attached else profile.batch_partition) or profile.partition
    values = {
        "account": profile.account,
        "partition": partition,
        "qos": profile.qos,
        "time": profile.time,
        **_machines(profile),
        "exclude": profile.exclude,
        "reservation": profile.reservation,
        "dependency": ",".join(filter(None, [profile.dependency, _after(how)])) or None,
        "comment": profile.comment,
    }
    for option, value in values.items():
        if value is not None:
            yield _option(option, str(value))
    if how.after:
        # A job whose turn cannot come any more is cancelled, and does not wait for ever.
        yield "--kill-on-invalid-dep=yes"
    if profile.exclusive:
        yield "--exclusive"
    yield "--requeue" if profile.requeue else "--no-requeue"
    if profile.signal_before_end_s:
        yield f"--signal=B:USR1@{profile.signal_before_end_s}"
    # What sbatch is started with, and nothing of the node's own.
    yield "--export=ALL"
    for extra in profile.sbatch_options:
        option, equals, value = extra.removeprefix("--").partition("=")
        yield _option(option, value) if equals else f"--{option}"


def _after(how: How) -> str | None:
    return ":".join(["afterok", *how.after]) if how.after else None


def _machines(group: SlurmProfile | SideGroup) -> dict[str, str | int | None]:
    """Options that say on what a group of tasks runs."""
    return {
        "nodes": group.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": group.cpus_per_task,
        "mem": group.mem,
        "gres": group.gres,
        "gpus-per-node": group.gpus_per_node if group.gpus_per_node and not group.gres else None,
        "constraint": group.constraint,
        "nodelist": group.nodelist,
    }


def _side_options(profile: SlurmProfile, side: SideGroup, name: str) -> Iterator[str]:
    """Options of the second component; Slurm takes over none of the first's."""
    shared = {"account": profile.account, "partition": side.partition or profile.partition, "qos": profile.qos}
    for option, value in {"job-name": name, **shared, "time": profile.time, **_machines(side)}.items():
        if value is not None:
            yield _option(option, str(value))
    if profile.exclusive:
        yield "--exclusive"


def _option(name: str, value: str) -> str:
    """An option as sbatch reads it from a script: in double quotes where it needs any, which have a backslash."""
    if re.fullmatch(r"[\w@%+=:,./^\[\]-]*", value):
        return f"--{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{name}="{escaped}"'


def _srun(profile: SlurmProfile, *options: str, nodes: int = 1, of: SideGroup | None = None) -> str:
    """A task on each of ``nodes`` nodes of the profile, or of the machine beside them."""
    words = ["srun", *options, f"--nodes={nodes}", f"--ntasks={nodes}", "--kill-on-bad-exit=1"]
    if nodes > 1:
        words.append("--ntasks-per-node=1")
    if cpus := (of or profile).cpus_per_task:
        # Since 22.05 a step gets one processor unless it says otherwise itself.
        words.append(f"--cpus-per-task={cpus}")
    if not profile.contained:
        return shlex.join(words)
    image = image_file(profile) or str(profile.container_image)
    if profile.container == "pyxis":
        mounts = [f"{source}:{target}" + (f":{flags}" if flags else "") for source, target, flags in profile.bindings()]
        words.append(f"--container-image={image}")
        if mounts:
            words.append(f"--container-mounts={','.join(mounts)}")
        return shlex.join([*words, "--no-container-mount-home", *profile.container_options])
    start = ["enroot", "start", "--rw"]
    for source, target, flags in profile.bindings():
        start += ["--mount", f"{source}:{target}" + (f":{flags}" if flags else "")]
    return shlex.join([*words, *start, *profile.container_options, image])


def _image_lines(profile: SlurmProfile, *, force_squash: bool) -> list[str]:
    """Import the image unless that has been done; one job does it, the others wait for it."""
    target = image_file(profile)
    if target is None:
        return []
    file, lock = shlex.quote(target), shlex.quote(f"{target}.lock")
    image = str(profile.container_image)
    source = shlex.quote(image if "://" in image else f"docker://{_registry(image)}")
    needed = f"[ ! -s {file} ]" if not force_squash else "true"
    return [
        f"mkdir -p {shlex.quote(target.rpartition('/')[0])}",
        "(",
        "  flock 9",
        f"  if {needed}; then",
        f'    draft={file}.$SLURM_JOB_ID.tmp; rm -f "$draft"',
        f'    enroot import --output "$draft" {source}',
        f'    [ -s "$draft" ] && mv -f "$draft" {file}',
        "  fi",
        f") 9> {lock}",
    ]


def _registry(image: str) -> str:
    """Docker's name in the form of enroot, which wants a ``#`` after the registry."""
    first, slash, rest = image.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return f"{first}#{rest}" if is_host else image
