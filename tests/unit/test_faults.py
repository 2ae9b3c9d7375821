"""What a disk answers is an error of the disk, whichever library asked it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.disk.faults import errors_of_rust

SAVES = """
import resource, signal, sys
from tokenizers import Tokenizer, models
from nemotron.disk.faults import errors_of_rust

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
words = Tokenizer(models.WordLevel({f"word{i}": i for i in range(1000)}, unk_token="word0"))
try:
    with errors_of_rust():
        words.save(sys.argv[1])
except OSError as error:
    print(error.errno)
"""


def test_a_tokenizer_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAVES, str(tmp_path / "tokenizer.json")], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{errno.EFBIG}\n", done.stderr


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="os error 28"), errors_of_rust():
        raise ValueError("(os error 28) is not the end of it")
