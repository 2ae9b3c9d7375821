"""As much of NeMo-RL's tree as a script needs that stands in for one of its own: the logger that our entry wraps."""

from __future__ import annotations

from pathlib import Path


def tree(root: Path, script: str, text: str) -> Path:
    """Write it into ``root``, with ``text`` as the script of that name below ``examples``."""
    (root / "nemo_rl" / "utils").mkdir(parents=True)
    for name in ("nemo_rl/__init__.py", "nemo_rl/utils/__init__.py"):
        (root / name).touch()
    (root / "nemo_rl/utils/logger.py").write_text("class Logger:\n    def log_metrics(self, *words, **more): ...\n")
    path = root / "examples" / script
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return root
