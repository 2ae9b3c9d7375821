"""Slurm, on its login node or over ssh."""
