"""Environment variables for a process that runs somebody else's functions: what Python needs, and no secrets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

# An allow-list: what a secret is called, nobody can say beforehand.
_NAMES = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TEMP", "TMP", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME"),
        *("CONDA_PREFIX", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
        *("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONNOUSERSITE", "PYTHONUNBUFFERED"),
        *("PYTHONUTF8", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE"),
    }
)
_BEGINNINGS = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "NUMEXPR_")


def plain_environment(also: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of ``environ`` that a Python process needs to run, and those named by ``also``."""
    wanted = _NAMES.union(also)
    return {name: value for name, value in environ.items() if name in wanted or name.startswith(_BEGINNINGS)}
