"""The files of a job: the data that it reads, and the folders that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.compile.nemo_rl_rows import Given, given
from nemotron.compile.probes.survey import PROMPTS, Shape, Survey, survey
from nemotron.config import resolvers
from nemotron.config.schema.data import DatasetConfig
from nemotron.data.inputs import answer_keys, pair_keys
from nemotron.data.manifest import Manifest, ShardFile
from nemotron.disk.home import expanded
from nemotron.errors import DataError
from nemotron.promises import DataPromise

if TYPE_CHECKING:
    from nemotron.compile.jobs.base import AnyJob

MANIFEST = "data.manifest_path"
HELDOUT_SPLIT = "eval.heldout.split"
UNKNOWN_KIND = "unknown"
"""Kind of promised rows whose sources do not tell."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file of the config."""

    role: str
    """``train``, ``validation`` or ``heldout``."""
    key: str
    paths: tuple[Path, ...]
    """The file, or the shards."""
    shape: Shape = PROMPTS
    rows: int | None = None
    """Number of rows where the manifest says it."""

    @property
    def told(self) -> str:
        """The role, for people."""
        return "held-out" if self.role == "heldout" else self.role

    @property
    def path(self) -> Path:
        """The file, or the first shard."""
        return self.paths[0]

    def survey(self) -> Survey:
        """What is in it."""
        return survey(self.paths, self.shape, self.rows)


def files(job: AnyJob) -> list[DataFile]:
    """Every data file that the run reads and that can be looked at from here."""
    return [file for file in named_files(job) if all(map(job.sees, file.paths))]


def named_files(job: AnyJob) -> list[DataFile]:
    """Every data file that the run reads; of a manifest only when it can be looked at."""
    data = job.config.data
    if data.manifest_path is not None:
        return _prepared_files(job) + _heldout_file(job)
    shared = data.default.data_path if data.default else None
    found = []
    for role, sets in (("train", data.training_sets()), ("validation", data.validation_sets())):
        for index, rows in enumerate(sets):
            where = f"data.{role}.{index}" if isinstance(getattr(data, role), list) else f"data.{role}"
            path = rows.data_path or shared
            if path:
                found.append(DataFile(role, f"{where}.data_path", (expanded(path),), _shape(job, rows)))
    return found + _heldout_file(job)


def _prepared_files(job: AnyJob) -> list[DataFile]:
    """The splits of the manifest; of promised data nothing can be read yet."""
    if job.place.promised_data(job.config.data.manifest_path) is not None:
        return []
    found = []
    for role, (key, shards) in shards_of(job).items():
        paths, rows = tuple(shard.path for shard in shards), sum(shard.rows for shard in shards)
        shape = Shape(job.heldout_kind) if role == "heldout" else Shape(job.row_kind, given=_given(job))
        found.append(DataFile(role, key, paths, shape, rows))
    return found


def _heldout_file(job: AnyJob) -> list[DataFile]:
    """The held-out prompts, where they are not a split of the manifest."""
    heldout = job.heldout
    if heldout is None or heldout.data_path is None or heldout.split is not None:
        return []
    path = expanded(heldout.data_path)
    return [DataFile("heldout", "eval.heldout.data_path", (path,), Shape(job.heldout_kind))]


def _shape(job: AnyJob, rows: DatasetConfig) -> Shape:
    return Shape(job.row_kind, pair_keys(rows), answer_keys(rows, job.config.data.default), _given(job))


def _given(job: AnyJob) -> Given | None:
    """The embedded engine takes every row that can be read."""
    return given(job.config) if job.engine == "nemo_rl" else None


def manifest_of(job: AnyJob) -> Manifest | None:
    """The manifest of the config; None when there is none, or none that can be read (a rule says so)."""
    path = job.config.data.manifest_path
    if path is not None and (promised := job.place.promised_data(path)) is not None:
        return promised_manifest(Path(path), promised)
    if path is None or not job.sees(path):
        return None
    try:
        return Manifest.read(expanded(path))
    except DataError:
        return None


def promised_manifest(path: Path, promised: DataPromise) -> Manifest | None:
    """A manifest that names the kind and the splits, with one shard of each that is not there; None where the splits
    are not known."""
    if promised.splits is None:
        return None
    splits = {name: (ShardFile(path.parent / name, 1, 0, ""),) for name in promised.splits}
    return Manifest(path, promised.kind or UNKNOWN_KIND, splits, splits if promised.tokens else {}, {})


def splits_wanted(job: AnyJob) -> dict[str, tuple[str, str]]:
    """Role of a data file -> the split of the manifest that it is, and the key that asks for it."""
    found = {"train": ("train", MANIFEST)}
    if job.config.data.validation_sets():
        found["validation"] = ("validation", MANIFEST)
    if job.heldout is not None and job.heldout.split:
        found["heldout"] = (job.heldout.split, HELDOUT_SPLIT)
    return found


def shards_of(job: AnyJob) -> dict[str, tuple[str, tuple[ShardFile, ...]]]:
    """Role -> key and shards, for every split that the run reads and that is there."""
    manifest = manifest_of(job)
    found = {}
    if manifest is not None:
        for role, (split, key) in splits_wanted(job).items():
            try:
                found[role] = (key, manifest.splits[manifest.split(split)])
            except DataError:
                continue  # `manifest-split` reports it
    return found


def on_sample(job: AnyJob) -> bool:
    """Whether a model of one's own would be trained on the shipped sample, which only lets any config run."""
    own = not Path(job.config.policy.model_name).is_relative_to(resolvers.ASSETS)
    return own and any(file.role == "train" and file.path.is_relative_to(resolvers.ASSETS) for file in files(job))
