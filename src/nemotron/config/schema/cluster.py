"""``cluster``: the GPUs that a NeMo-RL job may use."""

from __future__ import annotations

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, Omittable, Port


class ClusterConfig(Strict):
    """Size of the Ray cluster. The embedded engine runs in one process and does not read it."""

    gpus_per_node: Count
    """GPUs of every node."""
    num_nodes: Count
    """Nodes of the job, those of generation included."""
    segment_size: Count | None = None
    """Nodes of one NVLink domain that are scheduled together; null lets the scheduler choose."""
    master_port_range_low: Omittable[Port] = None
    """First port of the range in which the workers of a group meet."""
    master_port_range_high: Omittable[Port] = None
    """Last port of that range."""
