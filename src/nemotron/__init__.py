"""nemotron: a step-based command line for LLM post-training."""

__version__ = "0.1.0"
