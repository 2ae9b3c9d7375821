"""``logger``: where metrics go beside the run folder."""

from __future__ import annotations

from nemotron.config.schema.base import Open, Strict
from nemotron.config.schema.fields import DiskPath, NonNegativeInt, Omittable, PositiveFloat
from nemotron.config.schema.reads import Read


class WandbConfig(Open):
    """Arguments of ``wandb.init``; further ones are passed on."""

    project: Omittable[str] = None
    """Project name."""
    name: Omittable[str] = None
    """Run name."""
    entity: Omittable[str] = None
    """Team or user that owns the run."""


class SwanlabConfig(Open):
    """Arguments of ``swanlab.init``; further ones are passed on."""

    project: Omittable[str] = None
    """Project name."""
    name: Omittable[str] = None
    """Run name."""


class TensorboardConfig(Open):
    """Arguments of the TensorBoard writer."""

    log_dir: Omittable[DiskPath] = None
    """Folder of the event files; left out means a folder below ``logger.log_dir``."""


class MLflowConfig(Strict):
    """Where MLflow runs and how the run is named there."""

    experiment_name: str | None = None
    """Experiment that receives the run."""
    run_name: str | None = None
    """Run name."""
    run_id: str | None = None
    """Existing run to continue."""
    tracking_uri: str | None = None
    """Address of the MLflow server; null keeps the client's own default."""
    artifact_location: str | None = None
    """Root of the artifact store of a new experiment."""


class GPUMonitoringConfig(Strict):
    """How often GPU use is sampled."""

    collection_interval: PositiveFloat
    """Seconds between samples."""
    flush_interval: PositiveFloat
    """Seconds between writes to the loggers."""


class LoggerConfig(Strict):
    """Loggers that a run may feed. metrics.jsonl and report.html are written in any case."""

    log_dir: Read[DiskPath]
    """Folder of the log files; NeMo-RL adds a child ``exp_NNN``."""
    num_val_samples_to_print: NonNegativeInt
    """Validation samples shown on the terminal after each validation."""
    wandb_enabled: Read[bool]
    """Log to Weights & Biases."""
    swanlab_enabled: bool
    """Log to SwanLab."""
    tensorboard_enabled: Read[bool]
    """Log to TensorBoard."""
    mlflow_enabled: bool
    """Log to MLflow."""
    monitor_gpus: bool
    """Log utilisation and memory of every GPU."""
    wandb: Read[WandbConfig]
    """Settings of Weights & Biases."""
    swanlab: Omittable[SwanlabConfig] = None
    """Settings of SwanLab."""
    tensorboard: Read[Omittable[TensorboardConfig]] = None
    """Settings of TensorBoard."""
    mlflow: Omittable[MLflowConfig] = None
    """Settings of MLflow."""
    gpu_monitoring: GPUMonitoringConfig
    """Sampling of the GPU metrics."""
