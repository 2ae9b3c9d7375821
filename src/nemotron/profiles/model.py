"""What a profile may say, one model for each kind of executor. Every key is known, every value has its type.

Where NVIDIA's ``env.toml`` has a key of the same meaning, the name is the same; :mod:`nemotron.profiles.reference`
knows those that are called otherwise here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, NonNegativeInt
from nemotron.place import Place
from nemotron.profiles.values import (
    PLACEHOLDER,
    Address,
    Dashboard,
    Destination,
    Folder,
    Line,
    Mount,
    SbatchOption,
    Time,
    Value,
    Variable,
)

ExecutorName = Literal["local", "slurm", "lepton", "ray"]


class BaseProfile(Strict):
    """What every kind of profile may say."""

    description: str | None = None
    """For `nemotron profiles list`."""
    nodes: Count = 1
    """Machines that the job gets."""
    gpus_per_node: NonNegativeInt = 0
    memory_gb_per_node: Annotated[float, Field(gt=0, allow_inf_nan=False, lt=1e9)] | None = None
    """Main memory that the job may use on one node; the preflight compares its estimate with it, or with
    `gpu_memory_gb` where the node has GPUs."""
    gpu_memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False, lt=1e6)] | None = None
    """Memory of one GPU, e.g. 80; the preflight compares what trains and what vLLM serves with it."""
    env_vars: dict[Variable, Value] = Field(default_factory=dict)
    """Environment of the job. A value read from here, `${oc.env:HF_TOKEN}`, is never written to a file."""
    pass_env: list[Variable] = Field(default_factory=list)
    """Variables of this command's environment that the job gets; missing ones are left out."""
    startup_commands: list[str] = Field(default_factory=list)
    """Shell lines that run in the job before the worker, e.g. `module load cuda`."""
    remote_job_dir: Folder | None = None
    """Where run folders and code go, on storage that outlives the job and that every node sees."""
    shared: list[Folder] = Field(default_factory=list)
    """Folders that are the same there and here, so that files in them can be looked at before the job starts."""
    python: Line | None = None
    """Python that runs the worker there; the one of this command, or `python3` in a container."""
    code: Literal["ship", "installed"] = "ship"
    """`ship`: this version's code goes along, once a version. `installed`: it is there, and has to be this version."""
    has_nemo_rl: bool | None = None
    """Whether NeMo-RL is installed there; not known from here where nothing is said."""

    @property
    def kind(self) -> ExecutorName:
        """The executor."""
        raise NotImplementedError

    @property
    def image(self) -> str | None:
        """Container image, where there is one."""
        return None

    def reaches(self) -> tuple[Path, ...] | None:
        """Folders that a job there can read and that outlive it, by the names that the job knows; None: any."""
        return tuple(map(Path, self.shared)) or None

    def may_write(self, path: Path) -> bool:
        """Whether a job there can write at a path that it reaches."""
        return True

    def place(self, name: str) -> Place:
        """What the preflight asks."""
        reaches = self.reaches()
        if reaches and any(PLACEHOLDER.search(str(path)) for path in reaches):
            reaches = None
        known = {} if self.has_nemo_rl is None else {"nemo_rl": self.has_nemo_rl}
        return Place(
            name=name,
            is_here=False,
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            has_cuda=self.gpus_per_node > 0,
            memory_bytes=None if self.memory_gb_per_node is None else int(self.memory_gb_per_node * 2**30),
            gpu_memory_bytes=None if self.gpu_memory_gb is None else int(self.gpu_memory_gb * 2**30),
            modules=known,
            shared=tuple(Path(folder) for folder in self.shared),
            reaches=reaches,
        )

    @model_validator(mode="after")
    def _passes_what_it_does_not_set(self) -> Self:
        if both := sorted(set(self.env_vars) & set(self.pass_env)):
            raise PydanticCustomError("both", f"`{both[0]}` is in `env_vars` and in `pass_env`: keep one")
        return self


_OF_THIS_MACHINE = frozenset({"executor", "description", "env_vars", "pass_env", "python"})
"""What a profile can say of a process of this machine."""


class LocalProfile(BaseProfile):
    """This machine, detached from the terminal with `-b`."""

    executor: Literal["local"]

    @property
    def kind(self) -> ExecutorName:
        """The executor."""
        return "local"

    def place(self, name: str) -> Place:
        """This machine, as it is."""
        return Place.this_machine()

    @model_validator(mode="after")
    def _is_this_machine(self) -> Self:
        for name in sorted(self.model_fields_set - _OF_THIS_MACHINE):
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise PydanticCustomError(
                    "local",
                    f'`{name}` has no use with `executor = "local"`: the run is a process of this machine',
                )
        return self


class Contained(BaseProfile):
    """Executors that run container images."""

    container_image: Line | None = None
    """Image, e.g. `nvcr.io/nvidia/nemo-rl:v0.7.0`, or a `.sqsh` file."""

    @property
    def image(self) -> str | None:
        """The container image."""
        return self.container_image

    def place(self, name: str) -> Place:
        """NeMo-RL is known to be in NeMo-RL's own image."""
        place = super().place(name)
        if self.has_nemo_rl is None and self.container_image and "nemo-rl" in self.container_image:
            return replace(place, modules={"nemo_rl": True})
        return place


def _gpus_of(gres: object) -> int | None:
    """GPUs that a value of `--gres` asks for, `gpu:a100:8` or `gpu:2,shard:4`; None where it asks for none."""
    if not isinstance(gres, str) or PLACEHOLDER.search(gres):
        return None
    found = re.findall(r"(?:^|,)\s*gpu(?::(?!\d+(?:[,(]|$))[^:,()]+)?(?::(\d+))?", gres)
    return sum(int(count or 1) for count in found) if found else None


def _with_gpus(values: Any) -> Any:
    """Keys of a group of machines with `gpus_per_node` where only `gres` says it, under which all else asks for it."""
    if isinstance(values, dict) and values.get("gpus_per_node") is None:
        gpus = _gpus_of(values.get("gres"))
        return values if gpus is None else {**values, "gpus_per_node": gpus}
    return values


Binding = tuple[str, str, str]
"""A mount as (there, in the container, flags)."""


def _innermost(bindings: Sequence[Binding], path: Path) -> Binding | None:
    """Of the mounts that hold a path of the container, the one that decides what is there."""
    around = [binding for binding in bindings if path.is_relative_to(binding[1])]
    return max(around, key=lambda binding: len(Path(binding[1]).parts), default=None)


def _is_read_only(binding: Binding) -> bool:
    return "ro" in binding[2].split("+")


class SideGroup(Strict):
    """Machines for a server beside those of the job, which becomes a heterogeneous one."""

    nodes: Annotated[int, Field(ge=1, le=1)] = 1
    gpus_per_node: NonNegativeInt = 0
    cpus_per_task: Count | None = None
    mem: Line | None = None
    partition: Line | None = None
    gres: Line | None = None
    constraint: Line | None = None
    nodelist: Line | None = None

    @model_validator(mode="before")
    @classmethod
    def _says_its_gpus(cls, values: Any) -> Any:
        return _with_gpus(values)


class CriticGroup(SideGroup):
    """Of the critic's side of ppo."""


class JudgeGroup(SideGroup):
    """Of the judge of rlhf on NeMo-RL, where `judge.server` is `vllm`."""


Containers = Literal["pyxis", "enroot", "none"]
"""Who starts a container."""


class SlurmProfile(Contained):
    """Slurm, on its login node or over ssh."""

    executor: Literal["slurm"]
    tunnel: Literal["ssh", "local"] = "local"
    """`local`: this machine has sbatch. `ssh`: it is called on `host`."""
    host: Destination | None = None
    """Login node, as `ssh` knows it: a name of ~/.ssh/config works."""
    user: Destination | None = None
    identity: Line | None = None
    """Private key file; ssh's own configuration finds it where nothing is said."""
    ssh_options: list[Line] = Field(default_factory=list)
    """Options of ssh in its own form, e.g. `Port=2222`."""
    account: Line | None = None
    partition: Line | None = None
    run_partition: Line | None = None
    """Partition of `-r` (attached), where it differs."""
    batch_partition: Line | None = None
    """Partition of `-b` (detached), where it differs."""
    qos: Line | None = None
    time: Time = "04:00:00"
    """Time limit in Slurm's form; `checkpointing.checkpoint_must_save_by` follows from it where it is not set."""
    cpus_per_task: Count | None = None
    mem: Line | None = None
    """Memory of a node in Slurm's form, e.g. `64G`; `0` is all of it."""
    gres: Line | None = None
    """Instead of `gpus_per_node` on clusters that want `--gres`, e.g. `gpu:a100:8`."""
    exclusive: bool = False
    constraint: Line | None = None
    nodelist: Line | None = None
    exclude: Line | None = None
    reservation: Line | None = None
    dependency: Line | None = None
    comment: Line | None = None
    sbatch_options: list[SbatchOption] = Field(default_factory=list)
    """Further options of sbatch, each as `--name=value`."""
    array: bool = True
    """The runs of a sweep are one job array; `false` sends a job for each."""
    critic: CriticGroup | None = None
    """Of steps with a critic (ppo): its own machines. Without it both sides share those of the job."""
    judge: JudgeGroup | None = None
    """Of rlhf on NeMo-RL with `judge.server=vllm`: the machine on which `vllm serve` answers for the judge."""
    requeue: bool = True
    """A preempted job is queued again by Slurm and goes on from its last checkpoint."""
    signal_before_end_s: NonNegativeInt = 120
    """So many seconds before the time limit, and when the job is preempted, the run saves a checkpoint and stops."""
    container: Containers = "pyxis"
    """How `container_image` is run; without an image nothing is."""
    squash_dir: Folder | None = None
    """Where imported images are kept; `remote_job_dir`/images where nothing is said."""
    mounts: list[Mount] = Field(default_factory=list)
    """`/there:/in/the/container` or `/same`; a `:ro` may follow."""
    container_options: list[Line] = Field(default_factory=list)
    """Further options of pyxis or `enroot start`, e.g. `--no-container-mount-home`."""

    @property
    def kind(self) -> ExecutorName:
        """The executor."""
        return "slurm"

    @property
    def limit_s(self) -> int | None:
        """The time limit in seconds; None without one."""
        if self.time == "UNLIMITED" or PLACEHOLDER.search(self.time):
            return None
        days, dash, rest = self.time.rpartition("-")
        numbers = [int(number) for number in rest.split(":")]
        if dash:
            # After days come hours, whatever follows.
            hours, minutes, seconds = [*numbers, 0, 0][:3]
        elif len(numbers) == 1:
            hours, minutes, seconds = 0, numbers[0], 0
        else:
            hours, minutes, seconds = [0, *numbers][-3:]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def contained(self) -> bool:
        """Whether the worker runs in a container."""
        return self.container_image is not None and self.container != "none"

    def bindings(self) -> tuple[Binding, ...]:
        """Every mount; the folder of the runs is always one, and can be written."""
        found: list[Binding] = []
        for mount in self.mounts:
            source, _, rest = mount.partition(":")
            target, _, flags = rest.partition(":")
            found.append((source, target or source, flags))
        own = self.remote_job_dir
        around = _innermost(found, Path(own)) if own else None
        if own and (around is None or around[0] != around[1] or _is_read_only(around)):
            found.append((own, own, ""))
        return tuple(found)

    def may_write(self, path: Path) -> bool:
        """In a container the mount decides that holds the path."""
        around = _innermost(self.bindings(), path) if self.contained else None
        return around is None or not _is_read_only(around)

    def reaches(self) -> tuple[Path, ...] | None:
        """The mounts of a container; else the shared folders, where they are said."""
        if self.contained:
            return tuple(Path(target) for _, target, _ in self.bindings())
        if self.tunnel == "ssh" or self.shared:
            own = [self.remote_job_dir] if self.remote_job_dir else []
            return tuple(Path(folder) for folder in (*self.shared, *own)) or None
        return None

    def place(self, name: str) -> Place:
        """On a login node without a container, the files of the cluster are the files of this machine."""
        place = super().place(name)
        if self.judge is not None:
            place = replace(place, judge_gpus=self.judge.gpus_per_node)
        if self.tunnel == "ssh":
            return place
        if not self.contained:
            return place if self.shared else replace(place, shared=(Path("/"),))
        same = [Path(target) for source, target, _ in self.bindings() if source == target]
        return replace(place, shared=tuple(same))

    @model_validator(mode="before")
    @classmethod
    def _says_its_gpus(cls, values: Any) -> Any:
        return _with_gpus(values)

    @model_validator(mode="after")
    def _knows_its_host(self) -> Self:
        if self.tunnel == "ssh" and self.host is None:
            raise PydanticCustomError("host", '`tunnel = "ssh"` needs a `host`')
        if self.tunnel == "ssh" and self.remote_job_dir is None:
            raise PydanticCustomError("job_dir", '`tunnel = "ssh"` needs `remote_job_dir`: where run folders go there')
        if self.tunnel == "local":
            for name in ("host", "user", "identity"):
                if getattr(self, name) is not None:
                    raise PydanticCustomError("tunnel", f'`{name}` has no use without `tunnel = "ssh"`')
        return self

    @model_validator(mode="after")
    def _says_nothing_twice(self) -> Self:
        image = self.container_image or ""
        if image.endswith(".sqsh") and not image.startswith("/") and not PLACEHOLDER.search(image):
            raise PydanticCustomError("image", "`container_image`: a `.sqsh` file is named by its absolute path")
        if (limit := self.limit_s) is not None and self.signal_before_end_s >= limit > 0:
            raise PydanticCustomError(
                "signal",
                f"`signal_before_end_s` {self.signal_before_end_s} is not less than the time limit, `time` {self.time} "
                f"({limit:,} s): the job would be told to stop before it begins",
            )
        gpus = _gpus_of(self.gres)
        if gpus is not None and gpus != self.gpus_per_node:
            raise PydanticCustomError("gres", f"`gres` asks for {gpus} GPUs, `gpus_per_node` says {self.gpus_per_node}")
        return self


class LeptonMount(Strict):
    """A volume of a Lepton job."""

    mount_path: Folder
    """Where the job sees it."""
    path: Line = "/"
    """Folder of the volume."""
    from_: Annotated[Line, Field(alias="from")]
    """The volume, e.g. `node-nfs:lustre`."""


class LeptonProfile(Contained):
    """DGX Cloud Lepton by its REST API."""

    executor: Literal["lepton"]
    workspace_id: Line | None = None
    """Workspace; else LEPTON_WORKSPACE_ID, else the one that `lep workspace login` noted down."""
    workspace_url: Address | None = None
    """Address of the API; else LEPTON_WORKSPACE_URL, else the service's own for the workspace."""
    token_env: Variable = "LEPTON_WORKSPACE_TOKEN"
    """Variable that holds the token; else the one that `lep workspace login` noted down."""
    node_group: Line | None = None
    resource_shape: Line | None = None
    """e.g. `gpu.8xh100-sxm`."""
    node_reservation: Line | None = None
    shared_memory_size: Count | None = None
    """Shared memory in MiB."""
    mounts: list[LeptonMount] = Field(default_factory=list)
    image_pull_secrets: list[Line] = Field(default_factory=list)
    secrets: dict[Variable, Line] = Field(default_factory=dict)
    """Variable of the job -> name of a secret of the workspace."""
    ray_version: Line | None = None
    """Of a Ray cluster: what `ray --version` says in the image."""
    launch: Literal["auto", "job", "ray"] = "auto"
    """`job`: a batch job. `ray`: a Ray cluster, deleted when the job on it is over. `auto`: `ray` where NeMo-RL runs on
    several nodes."""
    start_timeout_s: Count = 1800
    """How long a Ray cluster may take to come up; one that takes longer is deleted."""

    @property
    def kind(self) -> ExecutorName:
        """The executor."""
        return "lepton"

    def brings_up_ray(self, engine: str | None) -> bool:
        """Whether a job of that engine gets a Ray cluster of its own."""
        return self.launch == "ray" or (self.launch == "auto" and engine == "nemo_rl" and self.nodes > 1)

    @property
    def root(self) -> str | None:
        """What run folders and code lie below."""
        return self.remote_job_dir or (self.mounts[0].mount_path if self.mounts else None)

    def reaches(self) -> tuple[Path, ...] | None:
        """The mounts: nothing else outlives the job."""
        return tuple(Path(mount.mount_path) for mount in self.mounts)

    @model_validator(mode="after")
    def _mounts_one_volume_at_a_place(self) -> Self:
        places = [str(Path(mount.mount_path)) for mount in self.mounts]
        if twice := next((place for number, place in enumerate(places) if place in places[:number]), None):
            raise PydanticCustomError("mounts", f"`mounts`: two volumes are mounted at `{twice}`")
        return self


class RayProfile(BaseProfile):
    """Ray's Jobs API of a cluster that is there."""

    executor: Literal["ray"]
    address: Dashboard
    """Its dashboard, e.g. `http://head:8265`."""
    token_env: Variable | None = None
    """Variable with the cluster's token, where it wants one (`RAY_AUTH_MODE=token`)."""
    entrypoint_num_cpus: Annotated[float, Field(ge=0)] | None = None
    entrypoint_num_gpus: Annotated[float, Field(ge=0)] | None = None
    secrets: list[Variable] = Field(default_factory=list)
    """Variables that the cluster's nodes have of their own: values of here are not sent."""

    def sees(self, folder: str) -> bool:
        """Whether a folder there is the same folder here."""
        return any(Path(folder).is_relative_to(shared) for shared in self.shared)

    def reaches(self) -> tuple[Path, ...] | None:
        """The folders that are shared, and the one of the runs."""
        own = [self.remote_job_dir] if self.remote_job_dir else []
        return tuple(Path(folder) for folder in (*self.shared, *own)) or None

    @property
    def kind(self) -> ExecutorName:
        """The executor."""
        return "ray"


MODELS: dict[str, type[BaseProfile]] = {
    "local": LocalProfile,
    "slurm": SlurmProfile,
    "lepton": LeptonProfile,
    "ray": RayProfile,
}


def placeholders(values: Any, key: str = "") -> list[str]:
    """Dotted keys whose value still is a placeholder."""
    if isinstance(values, str):
        return [key] if PLACEHOLDER.search(values) else []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for name, value in items for place in placeholders(value, f"{key}.{name}" if key else str(name))]
