"""What is looked at of Lepton's answers. Whatever else they hold is passed over, and so is a null."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel, model_validator


class _Part(BaseModel):
    """Ids and names are texts to us, whatever they are to Lepton."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class Metadata(_Part):
    """Of a job, a replica, a node group."""

    id: str | None = None
    name: str | None = None


class Row(_Part):
    """One of a list."""

    metadata: Metadata = Metadata()


class Rows(RootModel[list[Row] | None]):
    """A list; of nothing it is null."""

    @property
    def all(self) -> list[Row]:
        """The rows."""
        return self.root or []


class Page(_Part):
    """A list of jobs, of several pages."""

    jobs: list[Row] = []


class Found(RootModel[Page | list[Row] | None]):
    """What a search for jobs gives: Lepton has answered both ways."""

    @property
    def all(self) -> list[Row]:
        """The rows."""
        return self.root.jobs if isinstance(self.root, Page) else self.root or []


class Status(_Part):
    """How a job does."""

    state: str = "unknown"


class Job(Row):
    """A job."""

    status: Status = Status()


class ClusterStatus(Status):
    """How a Ray cluster does."""

    readyWorkerReplicas: int = 0


class Cluster(Row):
    """A Ray cluster."""

    status: ClusterStatus = ClusterStatus()


class Workspace(_Part):
    """What a token opens."""

    workspace_name: str | None = None


class Anything(RootModel[list[Any] | None]):
    """A list that is counted."""
