"""NeMo-RL as an engine: one folder that its official scripts accept, a process that runs them, and who watches it."""
