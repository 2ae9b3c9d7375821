"""Containers on a real Slurm. What stands in for pyxis and enroot takes their words, and runs tasks as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.slurm.lab import SBIN
from tests.integration.test_slurm import Cluster, cluster

__all__ = ["cluster"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ENROOT = """#!/bin/bash
echo "enroot $*" >> {log}
case $1 in
  import) sleep 1; echo image > "$3" ;;
  start)
    shift
    while [[ $1 == --* ]]; do [ "$1" = --mount ] && shift; shift; done
    [ -s "$1" ] || {{ echo "enroot: no such image: $1" >&2; exit 1; }}
    shift; exec "$@" ;;
esac
"""
SRUN = """#!/bin/bash
echo "srun $*" >> {log}
for word in "$@"; do
  shift
  case $word in
    --container-image=*) [ -s "${{word#*=}}" ] || {{ echo "pyxis: no such image: $word" >&2; exit 1; }} ;;
    --container-*|--no-container-*) ;;
    *) set -- "$@" "$word" ;;
  esac
done
exec /usr/bin/srun "$@"
"""
IMAGE = "registry.example/team/image:v1"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for the front of PATH; its ``log`` has what they were called with."""
    for name, text in {"enroot": ENROOT, "srun": SRUN}.items():
        (tmp_path / name).write_text(text.format(log=tmp_path / "log"))
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("kind", ["pyxis", "enroot"])
def test_an_image_is_imported_once_and_the_worker_runs_in_it(cluster: Cluster, tools: Path, kind: str) -> None:
    inside = tools / "inside"
    lines = (f'container = "{kind}"', f'container_image = "{IMAGE}"', 'mounts = ["/tmp", "/usr"]')
    before = f"startup_commands = ['echo \"it is inside\" >> {inside}']"
    cluster.profile(kind, *lines, before, f'squash_dir = "{tools}/my images"')
    path = f"{tools}:{SBIN}"
    both = [cluster.start(*cluster.brief("-r", kind, f"{kind}-{number}"), PATH=path) for number in range(2)]
    for command in both:
        out, err = command.communicate(timeout=300)
        assert (command.returncode, "train: 2,400 rows" in out) == (0, True), err + out
    assert inside.read_text() == "it is inside\n" * 2
    calls = (tools / "log").read_text().splitlines()
    imports = [call for call in calls if call.startswith("enroot import")]
    assert len(imports) == 1, "the second job waits for the first one's image"
    assert imports[0].endswith("docker://registry.example#team/image:v1")
    [image] = (tools / "my images").glob("*.sqsh")
    starts = [call for call in calls if call.startswith(("srun ", "enroot start ")) and str(image) in call]
    assert len(starts) == (2 if kind == "pyxis" else 4), "of enroot's each is seen by srun as well"
    assert all("/tmp:/tmp" in call for call in starts)
    again = cluster.nemotron(*cluster.brief("-r", kind, f"{kind}-again"), "--force-squash", PATH=path)
    assert again.returncode == 0, again.stderr
    assert (tools / "log").read_text().count("enroot import") == 2


def test_an_image_that_cannot_be_had_is_said(cluster: Cluster, tools: Path) -> None:
    (tools / "enroot").write_text('#!/bin/bash\necho "[ERROR] no such image: $4" >&2\nexit 1\n')
    lines = ('container = "pyxis"', f'container_image = "{IMAGE}"', 'mounts = ["/tmp", "/usr"]')
    cluster.profile("without", *lines, f'squash_dir = "{tools}/images"')
    done = cluster.nemotron(*cluster.tiny("-r", "without"), PATH=f"{tools}:{SBIN}")
    assert done.returncode == 1, done.stderr
    assert "[ERROR] no such image" in done.stdout
    assert "ended with exit code 1" in done.stderr
