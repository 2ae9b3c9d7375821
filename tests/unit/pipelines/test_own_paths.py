"""The paths of a pipeline's own nodes are texts, whatever its folder is called."""

from __future__ import annotations

import pytest

from nemotron.config.resolvers import interpolate
from nemotron.errors import Origin
from nemotron.pipelines.chain import as_written


@pytest.mark.parametrize(
    "path",
    [
        "/a/b c",
        "/a/${x}/b",
        "/a/$x/b$",
        "/${run_dir:}/${oc.env:HOME}",
        r"/a\b\c",
        r"/a\${x}",
        r"/a\\${x}",
        "/a${",
        "/a}",
    ],
)
def test_a_path_comes_out_as_it_is(path: str) -> None:
    origin = Origin("p.yaml")
    values, findings = interpolate({"key": as_written(path)}, {"key": origin}, run_dir="/runs/RUN_ID")
    assert (values, findings) == ({"key": path}, [])
