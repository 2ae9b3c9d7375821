"""vLLM in an environment of its own: where its program is, what it is started with, and who keeps it running."""
