"""Manifests: strict reading, discovery that survives a broken one, filters by type, ids by tail."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron import manifest
from nemotron.config.known import Standing, look_up
from nemotron.config.layers import load, read_layers
from nemotron.errors import ConfigError, NotFoundError

TYPES = """\
[rows]
description = "Rows"
on_disk = "a file"

[prompts]
description = "Prompts"
on_disk = "a file"
is_a = ["rows"]

[model]
description = "A model"
on_disk = "a folder"
"""

STEP = """\
title = "A step"
description = "It does things"
launch = "python"
tags = ["one"]

[[consumes]]
type = "rows"
description = "Input"
bind = ["data.path"]

[[produces]]
type = "model"
required = false
description = "Output"
bind = ["out.dir"]
"""


def steps_folder(root: Path, **steps: str) -> Path:
    (root / "types.toml").write_text(TYPES)
    for name, text in steps.items():
        folder = root.joinpath(*name.split("__"))
        folder.mkdir(parents=True)
        (folder / "step.toml").write_text(text)
    return root


def test_a_step_is_its_folder(tmp_path: Path) -> None:
    root = steps_folder(tmp_path, rl__lib__thing=STEP)
    config = root / "rl" / "lib" / "thing" / "config"
    config.mkdir()
    for name in ("tiny", "default", "big"):
        (config / f"{name}.yaml").touch()
    (step,) = manifest.load_catalog(root).steps
    assert (step.id, step.category, step.configs) == ("rl/lib/thing", "rl", ["default", "big", "tiny"])
    assert step.consumes[0].required
    assert not step.produces[0].required
    assert step.resources.nodes == 1
    assert manifest.as_json(step)["folder"] == str(root / "rl" / "lib" / "thing")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (("title =", "titel ="), "unknown key `titel`", "did you mean `title`?"),
        (('title = "A step"\n', ""), "the key `title` is missing", None),
        (('bind = ["out.dir"]', "binds = 3"), "unknown key `binds` in `produces.0`", None),
        (('"python"', '"slurm"'), "`launch` should be 'ray' or 'python'", None),
        (('tags = ["one"]', "tags = 3"), "`tags` should be a valid list", None),
        (("required = false", 'required = "no"'), "`required` in `produces.0` should be a valid boolean", None),
        (('type = "rows"', 'type = "row"'), "unknown artifact type `row`", "did you mean `rows`?"),
        (("title", 'id = "x"\ntitle'), "`id` is not written here: it comes from the folder", "delete the line"),
        (("launch", 'category = "x"\nlaunch'), "`category` is not written here", "delete the line"),
        (("launch =", "launch"), "broken TOML", None),
    ],
)
def test_a_broken_manifest_is_named_and_hides_nobody(
    tmp_path: Path, change: tuple[str, str], message: str, hint: str | None
) -> None:
    root = steps_folder(tmp_path, rl__bad=STEP.replace(*change, 1), rl__good=STEP)
    catalog = manifest.load_catalog(root)
    assert [step.id for step in catalog.steps] == ["rl/good"]
    error = catalog.problems["rl/bad"]
    assert error.message.startswith("`step.toml` of `bad`: ")
    assert message in error.message
    assert error.hint == hint or hint is None
    assert str(error.origin) == str(root / "rl" / "bad" / "step.toml")
    assert manifest.find_step("good", catalog).id == "rl/good"
    with pytest.raises(ConfigError, match="`bad`"):
        manifest.find_step("bad", catalog)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    root = steps_folder(tmp_path, rl__bad=STEP)
    (root / "rl" / "bad" / "step.toml").write_bytes(b"\xff")
    assert "not UTF-8 text" in manifest.load_catalog(root).problems["rl/bad"].message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            '[a]\ndescription = "x"\non_disk = "y"\nis_a = ["modle"]\n',
            "`a` names the type `modle`, which does not exist",
        ),
        ('[a]\ndescription = "x"\non_disk = "y"\nconvert_to = { gone = "s" }\n', "`a` names the type `gone`"),
        (
            '[a]\ndescription = ""\non_disk = ""\nis_a = ["b"]\n[b]\ndescription = ""\non_disk = ""\nis_a = ["a"]\n',
            "`is_a` of `a` goes in a circle",
        ),
        ('[a]\ndescription = "x"\n', r"the key `on_disk` is missing in `\[a\]`"),
        ('[a]\ndescription = "x"\non_disk = "y"\nisa = []\n', r"unknown key `isa` in `\[a\]`"),
    ],
)
def test_broken_types(tmp_path: Path, extra: str, message: str) -> None:
    path = tmp_path / "types.toml"
    path.write_text(TYPES + extra)
    with pytest.raises(ConfigError, match=message):
        manifest.load_types(path)


def test_ids_by_unique_tail(tmp_path: Path) -> None:
    root = steps_folder(tmp_path, rl__a__dpo=STEP, rl__a__rlhf=STEP, sft__a__dpo=STEP)
    catalog = manifest.load_catalog(root)
    assert manifest.find_step("rlhf", catalog).id == "rl/a/rlhf"
    assert manifest.find_step("a/rlhf", catalog).id == "rl/a/rlhf"
    assert manifest.find_step("sft/a/dpo", catalog).id == "sft/a/dpo"
    assert manifest.find_step("rl/a/rlhf/", catalog).id == "rl/a/rlhf"
    with pytest.raises(NotFoundError, match="`dpo` could be several steps") as caught:
        manifest.find_step("dpo", catalog)
    assert caught.value.hint == "write one of `rl/a/dpo`, `sft/a/dpo`"
    for name, guess in (("rlhff", "rl/a/rlhf"), ("rl/a/rlfh", "rl/a/rlhf"), ("hf", None)):
        with pytest.raises(NotFoundError, match=f"there is no step `{name}`") as caught:
            manifest.find_step(name, catalog)
        assert (f"did you mean `{guess}`?" in (caught.value.hint or "")) is (guess is not None)
        assert "`nemotron steps list` shows them all" in (caught.value.hint or "")


def test_filters_honour_is_a(tmp_path: Path) -> None:
    prompts = STEP.replace('type = "rows"', 'type = "prompts"')
    root = steps_folder(tmp_path, rl__rows=STEP, rl__prompts=prompts)
    catalog, types = manifest.load_catalog(root), manifest.load_types(root / "types.toml")

    def ids(**filters: str) -> list[str]:
        return [step.id for step in manifest.select_steps(catalog, types=types, **filters)]

    assert ids(consumes="prompts") == ["rl/prompts", "rl/rows"]
    assert ids(consumes="rows") == ["rl/rows"]
    assert ids(produces="model", category="rl", tag="one") == ["rl/prompts", "rl/rows"]
    assert ids(produces="rows") == []
    for filters, hint in (
        ({"consumes": "promts"}, "did you mean `prompts`?"),
        ({"category": "zz"}, "known: `rl`"),
        ({"tag": "on"}, "did you mean `one`?"),
    ):
        with pytest.raises(NotFoundError) as caught:
            ids(**filters)
        assert caught.value.hint == hint


SHIPPED = manifest.load_catalog()


def test_shipped_manifests_are_sound() -> None:
    assert not SHIPPED.problems
    assert "rl/nemo_rl/rlhf" in [step.id for step in SHIPPED.steps]


@pytest.mark.parametrize("step", SHIPPED.steps, ids=lambda step: step.id)
def test_bound_keys_exist_in_the_model_of_the_step(step: manifest.Step) -> None:
    model = manifest.declaration(step).config
    for artifact in (*step.consumes, *step.produces):
        for key in artifact.bind:
            assert look_up(model, key.split(".")) is Standing.KNOWN, key


@pytest.mark.parametrize("step", SHIPPED.steps, ids=lambda step: step.id)
def test_shipped_steps_have_a_readme_and_a_default_and_a_tiny_config(step: manifest.Step) -> None:
    assert (step.folder / "README.md").is_file()
    assert {"default", "tiny"} <= set(step.configs)
    for name in step.configs:
        read_layers(step.config_dir, name)


CONFIG_ERRORS = {"unknown-key", "missing-key", "wrong-type", "out-of-range", "invalid-value", "unresolved", "no-effect"}


@pytest.mark.parametrize("step", SHIPPED.steps, ids=lambda step: step.id)
def test_documented_errors_are_raised_somewhere(step: manifest.Step) -> None:
    stages = manifest.declaration(step).rules
    checked = {rule.name for stage in stages for rules in stage for rule in rules.members}
    names = [error.name for error in step.errors]
    assert set(names) <= checked | CONFIG_ERRORS
    assert len(names) == len(set(names))


def test_a_step_without_configs_is_told_which_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        load(tmp_path / "config", "default", [], run_dir="r")
    assert caught.value.hint == f"write `{tmp_path}/config/default.yaml`"
