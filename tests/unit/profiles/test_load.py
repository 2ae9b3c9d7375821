"""Profiles: found, extended, typed, and every mistake in them named with its place."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemotron.errors import CompileError, ConfigError, NemotronError, NotFoundError
from nemotron.profiles import reference
from nemotron.profiles.load import ENV_FILE, SHIPPED, Profiles, from_snapshot
from nemotron.profiles.model import MODELS, Containers, SlurmProfile


def profiles(folder: Path, text: str, environ: dict[str, str] | None = None) -> Profiles:
    (folder / "env.toml").write_text(text)
    return Profiles(folder, environ or {})


def messages(error: pytest.ExceptionInfo[NemotronError]) -> str:
    found = getattr(error.value, "findings", ())
    lines = [f"{f.message} | {f.hint} | {f.origin}" for f in found]
    return "\n".join([*lines, f"{error.value.message} | {error.value.hint} | {error.value.origin}"])


SLURM = '[a]\nexecutor = "slurm"\n'


def test_the_shipped_profiles_are_those_of_the_documentation(tmp_path: Path) -> None:
    found = Profiles(tmp_path, {})
    steps = ("rlhf", "dpo", "rlvr", "ppo", "rm")
    names = [f"{kind}_rl_nemo_rl_{step}" for kind in ("slurm", "lepton") for step in steps]
    assert {*names, "local"} <= set(found.names())
    for name in names:
        profile = found.get(name)
        assert profile.settings.kind == name.partition("_")[0]
        assert profile.unfilled, "it must not be submitted as it is"
        assert profile.settings.place(name).has("nemo_rl") is True


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Editors of Windows put one in front."""
    (tmp_path / "env.toml").write_text(SLURM, encoding="utf-8-sig")
    assert Profiles(tmp_path, {}).get("a").settings.kind == "slurm"


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    text = """
[base]
executor = "slurm"
partition = "p"
mounts = ["/a", "/b"]
env_vars = { A = "1", B = "2" }
[child]
extends = "base"
nodes = 3
mounts = ["/c"]
env_vars = { B = "3" }
"""
    settings = profiles(tmp_path, text).get("child").settings
    assert isinstance(settings, SlurmProfile)
    assert (settings.partition, settings.nodes, settings.mounts) == ("p", 3, ["/c"])
    assert settings.env_vars == {"A": "1", "B": "3"}


def test_a_project_extends_a_shipped_profile_and_hides_it(tmp_path: Path) -> None:
    text = '[slurm_base]\nexecutor = "slurm"\naccount = "mine"\nremote_job_dir = "/lustre/me"\n'
    found = profiles(tmp_path, text)
    settings = found.get("slurm_rl_nemo_rl_rlhf").settings
    assert isinstance(settings, SlurmProfile)
    assert (settings.account, settings.gpus_per_node) == ("mine", 8)
    assert found.get("slurm_rl_nemo_rl_rlhf").unfilled == []


def test_files_are_found_upwards_and_stop_at_the_project(tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text('[outer]\nexecutor = "local"\n')
    project = tmp_path / "project"
    (project / "profiles").mkdir(parents=True)
    (project / "deep" / "er").mkdir(parents=True)
    (project / "profiles" / "x.toml").write_text('[inner]\nexecutor = "local"\n')
    assert "inner" in Profiles(project / "deep" / "er", {}).names()
    (project / "deep" / "pyproject.toml").touch()
    assert "inner" not in Profiles(project / "deep" / "er", {}).names()
    named = Profiles(project / "deep", {ENV_FILE: str(tmp_path / "env.toml")})
    assert "outer" in named.names()
    with pytest.raises(NotFoundError, match="is no file"):
        Profiles(tmp_path, {ENV_FILE: str(tmp_path / "gone.toml")}).names()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SLURM + "partitoin = 'x'", "did you mean `partition`"),
        (SLURM + "nodes = 0", "at least 1"),
        (SLURM + "nodes = '2'", "expected an integer"),
        (SLURM + "time = 'four hours'", "time"),
        (SLURM + "remote_job_dir = 'here'", "absolute path"),
        (SLURM + 'account = "a\\nb"', "one line"),
        (SLURM + "env_vars = { 'A B' = '1' }", "name of an environment variable"),
        (SLURM + "env_vars = { A = '${oc.env:NOT_SET_ANYWHERE}' }", "NOT_SET_ANYWHERE"),
        (SLURM + "env_vars = { A = '1' }\npass_env = ['A']", "keep one"),
        (SLURM + "tunnel = 'ssh'", "needs a `host`"),
        (SLURM + "host = 'login'", 'no use without `tunnel = "ssh"`'),
        (SLURM + "extends = 'b'", "which does not exist"),
        (SLURM + "sbatch_options = ['-p other']", "`--name=value` or `--name`"),
        (SLURM + "sbatch_options = ['--time=1:00']", "write the profile's `time`"),
        (SLURM + "sbatch_options = ['output=/x']", "`--output` is set already, for every job"),
        (SLURM + "container_image = 'img.sqsh'", "absolute path"),
        (SLURM + "mounts = ['/data:/data,/etc:/etc']", "one mount"),
        (SLURM + "mounts = ['/a:/b:rw:zz']", "one mount"),
        (SLURM + "time = '00:05'", "is not less than the time limit, `time` 00:05 (5 s)"),
        (SLURM + "gpus_per_node = 8\ngres = 'gpu:a100:4'", "`gres` asks for 4 GPUs, `gpus_per_node` says 8"),
        (SLURM + "gpus_per_node = 0\ngres = 'gpu:2'", "`gres` asks for 2 GPUs, `gpus_per_node` says 0"),
        ("[a]\nexecutor = 'lepton'\nworkspace_url = 'nonsense'", "should be an address"),
        (
            "[a]\nexecutor = 'lepton'\nmounts = [{from = 'v', mount_path = '/m'}, {from = 'w', mount_path = '/m/'}]",
            "two volumes are mounted at `/m`",
        ),
        ("[a]\nexecutor = 'local'\nstartup_commands = ['module load cuda']", "`startup_commands` has no use"),
        ("[a]\nexecutor = 'local'\nmemory_gb_per_node = 1", "`memory_gb_per_node` has no use"),
        (SLURM + "extends = 'a'", "circle: a -> a"),
        ("[a]\nnodes = 1", "names no executor"),
        ("[a]\nexecutor = 'slrum'", "did you mean `slurm`"),
        ("[a]\nexecutor = 'dgxcloud'", "no executor here"),
        ("executor = 'slurm'", "stands outside of any profile"),
        ("[a\n", "this is not TOML"),
        (SLURM + "started = 1979-05-27", "started"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(NemotronError) as error:
        profiles(tmp_path, text).get("a")
    assert said in messages(error)
    assert "env.toml" in messages(error)
    assert error.value.exit_code == ConfigError.exit_code


@pytest.mark.parametrize("key", sorted(reference.REFUSED))
def test_keys_of_the_reference_without_a_counterpart_say_what_to_do(tmp_path: Path, key: str) -> None:
    with pytest.raises(CompileError) as error:
        profiles(tmp_path, f"{SLURM}{key} = 'x'").get("a")
    assert f"`{key}` is not a key of a slurm profile here | {reference.REFUSED[key]}" in messages(error)


@pytest.mark.parametrize("kind", get_args(Containers))
def test_who_starts_a_container_is_no_old_name_of_its_image(tmp_path: Path, kind: str) -> None:
    """`container = "enroot"` is in the guide, and was refused beside `container_image`."""
    text = f"{SLURM}container = '{kind}'\ncontainer_image = 'i'\nremote_job_dir = '/d'"
    settings = profiles(tmp_path, text).get("a").settings
    assert isinstance(settings, SlurmProfile)
    assert (settings.container, settings.container_image) == (kind, "i")


def test_no_other_key_is_one_of_the_reference() -> None:
    fields = {name for model in MODELS.values() for name in model.model_fields}
    assert fields & {*reference.RENAMED, *reference.REFUSED} == set(reference.OWN)


def test_keys_of_the_reference_with_another_name(tmp_path: Path) -> None:
    text = SLURM + "container = 'i'\nnemo_run_dir = '/d'\nsetup_lines = 'module load x'"
    settings = profiles(tmp_path, text).get("a").settings
    assert isinstance(settings, SlurmProfile)
    assert (settings.container_image, settings.remote_job_dir) == ("i", "/d")
    assert settings.startup_commands == ["module load x"]
    with pytest.raises(ConfigError, match="both are set"):
        profiles(tmp_path, text + "\ncontainer_image = 'j'").get("a")


def test_values_from_the_environment_are_kept_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "secret-1")
    profile = profiles(tmp_path, SLURM + "env_vars = { TOKEN = '${oc.env:PLANTED}' }").get("a")
    assert profile.settings.env_vars == {"TOKEN": "secret-1"}
    assert "secret-1" not in str(profile.snapshot) + repr(profile)
    assert profile.from_environment == {"TOKEN": "PLANTED"}
    monkeypatch.setenv("PLANTED", "secret-2")
    again = from_snapshot("a", profile.snapshot, tmp_path / "profile.json")
    assert again.settings.env_vars == {"TOKEN": "secret-2"}


def test_tables_of_nvidias_command_are_no_profiles(tmp_path: Path) -> None:
    found = profiles(tmp_path, '[wandb]\nproject = "x"\n' + SLURM)
    assert "wandb" not in found.names()
    assert "a" in found.names()


KEYS = sorted({name for model in MODELS.values() for name in model.model_fields} | set(reference.REFUSED))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=True),
    st.sampled_from(
        ["local", "slurm", "lepton", "ray", "a", "b", "${oc.env:X}", "${", "${a.b}", "<x>", "/x", "???", ""]
    ),
    st.text(max_size=12),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=6)), inner, max_size=3),
    ),
    max_leaves=6,
)
TABLE = st.dictionaries(
    st.one_of(st.sampled_from(["executor", "extends", *KEYS]), st.text(max_size=5)), VALUES, max_size=8
)


def as_toml(value: Any) -> str:
    """TOML text of a value; None has no form there."""
    import json

    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(repr(value), repr(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(str(k))} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str) else str(value)


FILES = st.dictionaries(st.sampled_from(["a", "b", "c"]), TABLE, min_size=1)
EXECUTORS = st.sampled_from(sorted(MODELS))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(FILES, EXECUTORS)
def test_random_profiles(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any], executor: str) -> None:
    gives_a_profile_or_an_error(tmp_path_factory.mktemp("random"), tables, executor)


@pytest.mark.full
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(FILES, EXECUTORS)
def test_a_thousand_random_profiles(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any], executor: str
) -> None:
    gives_a_profile_or_an_error(tmp_path_factory.mktemp("random"), tables, executor)


def gives_a_profile_or_an_error(folder: Path, tables: dict[str, Any], executor: str) -> None:
    """Whatever stands in a file, a name gives a profile or an error of ours."""
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{as_toml(str(key))} = {as_toml(value)}" for key, value in {"executor": executor, **table}.items()]
    (folder / "env.toml").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    found = Profiles(folder, {})
    for name in tables:
        try:
            profile = found.get(name)
        except NemotronError as error:
            said = error.message
        else:
            said = profile.settings.place(name).name
            assert isinstance(profile.unfilled, list)
        assert said


def test_shipped_files_are_toml_without_unknown_tables() -> None:
    for file in SHIPPED.glob("*.toml"):
        assert all(isinstance(table, dict) for table in tomllib.loads(file.read_text()).values())


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:a100:8", 8),
        ("gpu:2", 2),
        ("gpu", 1),
        ("gpu:h100", 1),
        ("gpu:a100:2,gpu:t4:1", 3),
        ("shard:4,gpu:4(S:0-1)", 4),
        ("lustre:1", 0),
    ],
)
def test_gpus_that_only_gres_asks_for_are_gpus_of_the_node(tmp_path: Path, gres: str, gpus: int) -> None:
    """A job with eight of them would have been planned for the processor, and have asked for all eight."""
    profile = profiles(tmp_path, f"{SLURM}gres = '{gres}'\n[a.critic]\ngres = '{gres}'").get("a")
    settings = profile.settings
    assert isinstance(settings, SlurmProfile)
    assert settings.critic is not None
    assert (settings.gpus_per_node, settings.critic.gpus_per_node) == (gpus, gpus)
    assert settings.place("a").has_cuda is (gpus > 0)


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:NOT_SET_ANYWHERE,${oc.env:PLANTED}}",
        "${env_vars.FIRST}",
        "${.FIRST}",
        "Bearer ${oc.select:env_vars.SECOND}",
        "${account}",
    ],
)
def test_what_comes_from_the_environment_in_whatever_way_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("PLANTED", "secret-1")
    variables = "FIRST = '${oc.env:PLANTED}', SECOND = '${env_vars.FIRST}', PLAIN = '1'"
    profile = profiles(
        tmp_path, f"{SLURM}account = '${{oc.env:PLANTED}}'\nenv_vars = {{ {variables}, LAST = '{text}' }}"
    ).get("a")
    assert "secret-1" in profile.settings.env_vars["LAST"]
    assert profile.from_environment == dict.fromkeys(("FIRST", "SECOND", "LAST"), "PLANTED")


@pytest.mark.parametrize(
    ("mounts", "written"),
    [
        ("'/data:/data:ro'", {"/data/x": False, "/jobs/x": True}),
        ("'/data:/data:ro', '/data/out:/data/out'", {"/data/x": False, "/data/out/x": True}),
        ("'/jobs:/jobs:ro'", {"/jobs/mine/x": True, "/jobs/x": False}),
        ("'/a:/b:rw+ro'", {"/b/x": False}),
    ],
)
def test_the_innermost_mount_says_what_can_be_written(tmp_path: Path, mounts: str, written: dict[str, bool]) -> None:
    text = f"{SLURM}remote_job_dir = '/jobs/mine'\ncontainer_image = 'i'\nmounts = [{mounts}]"
    settings = profiles(tmp_path, text).get("a").settings
    assert {path: settings.may_write(Path(path)) for path in written} == written
