"""Pipelines: steps that feed one another by the types of their artifacts, as the manifests declare them."""
