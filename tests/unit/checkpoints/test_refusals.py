"""What is refused, by which words, and that the target is untouched."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemotron.checkpoints.hf import headers
from nemotron.checkpoints.megatron.pickles import loads
from nemotron.checkpoints.policy import load_policy_weights
from nemotron.errors import ArtifactError, OutputError
from tests.forked import Fork
from tests.limited import longest_file
from tests.unit.checkpoints.families_zoo import VOCAB, make, write_megatron, write_tokenizer

NOBODY = 65534


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "hf", "llama")


@pytest.fixture
def megatron(source: Path, tmp_path: Path) -> Path:
    hf_to_megatron(source, tmp_path / "megatron", verify="none")
    return tmp_path / "megatron" / "iter_0000000"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(megatron: Path, tmp_path: Path, hf_model: Path | None = None) -> str:
    """The message of converting ``megatron``; nothing may be left behind."""
    target = tmp_path / "out"
    with pytest.raises(ArtifactError) as caught:
        megatron_to_hf(megatron, target, hf_model=hf_model)
    assert not target.exists()
    assert not list(tmp_path.glob(".out*"))
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "MoE"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "MoE"),
        ({"model_type": "deepseek_v2", "kv_lora_rank": 64}, "MLA"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"}, "hybrid"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"model_type": "gpt2"}, "`gpt2`"),
        ({"model_type": "gemma2"}, "`gemma2`"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "`yarn`"),
        ({"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 64}}, "64"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "`gelu`"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"hidden_size": "64"}, "`hidden_size`"),
        ({"vocab_size": 512}, "model.embed_tokens.weight"),
        ({"num_hidden_layers": 5}, "lacks"),
        ({"num_hidden_layers": 3}, "does not have"),
        ({"model_type": "qwen2"}, "lacks"),
    ],
)
def test_models_that_do_not_convert(source: Path, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        os.link(file, broken / file.name)
    config = {**json.loads((source / "config.json").read_text()), **changes}
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="(?i)" + words.replace(".", r"\.")):
        hf_to_megatron(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_and_pickled_weights(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="pickles"):
        hf_to_megatron(folder, tmp_path / "out")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="adapter"):
        hf_to_megatron(folder, tmp_path / "out")


def test_a_tokenizer_of_another_model(source: Path, tmp_path: Path) -> None:
    policy = load_policy_weights(source)
    write_tokenizer(tmp_path, VOCAB + 1)
    with pytest.raises(ArtifactError, match=f"id {VOCAB}.*{VOCAB} rows"):
        write_megatron(policy.state, policy.hf_config, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_safetensors(source: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "hf", "llama")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(ArtifactError, match="corrupt or cut short"):
        hf_to_megatron(folder, tmp_path / "out")


def test_weights_that_one_may_not_read_are_not_called_corrupt(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    tmp_path.chmod(0o755)
    (tmp_path / "model.safetensors").chmod(0)

    def work() -> int:
        os.chdir(tmp_path)
        if os.geteuid() == 0:  # who may read everything
            os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            headers(Path())
        except ArtifactError as error:
            return 0 if "cannot be read: permission denied" in str(error) else 1
        return 2

    assert Fork(work).wait(60) == 0


def test_a_shard_is_missing(megatron: Path, tmp_path: Path) -> None:
    (megatron / "__0_0.distcp").unlink()
    assert "a shard of the checkpoint is lost" in refused(megatron, tmp_path)


def test_data_is_cut_short(megatron: Path, tmp_path: Path) -> None:
    with (megatron / "__0_0.distcp").open("r+b") as file:
        file.truncate(100_000)
    assert "cut short" in refused(megatron, tmp_path)


def test_one_flipped_bit(megatron: Path, tmp_path: Path) -> None:
    content = bytearray((megatron / "__0_0.distcp").read_bytes())
    content[60_000] ^= 1
    (megatron / "__0_0.distcp").write_bytes(content)
    assert "checksum" in refused(megatron, tmp_path)


@pytest.mark.parametrize("length", [0, 10, 3000, -1])
def test_metadata_is_cut_short(megatron: Path, tmp_path: Path, length: int) -> None:
    content = (megatron / ".metadata").read_bytes()
    (megatron / ".metadata").write_bytes(content[:length])
    assert "corrupt or cut short" in refused(megatron, tmp_path)


def test_not_written_to_the_end(megatron: Path, tmp_path: Path) -> None:
    (megatron / "metadata.json").unlink()
    assert "not written to the end" in refused(megatron, tmp_path)


def test_another_format(megatron: Path, tmp_path: Path) -> None:
    edit(megatron / "metadata.json", sharded_backend="zarr")
    assert "`zarr`" in refused(megatron, tmp_path)


class Hostile:
    """Would make a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.witness),)


def hostile_metadata(megatron: Path, bomb: Hostile) -> None:
    (megatron / ".metadata").write_bytes(pickle.dumps(bomb))


def hostile_common(megatron: Path, bomb: Hostile) -> None:
    torch.save({"iteration": 0, "args": bomb}, megatron / "common.pt")


def hostile_tensor(megatron: Path, bomb: Hostile) -> None:
    """Put a hostile record where the first tensor lies, of the same length."""
    bad = megatron / "bad"
    torch.save(bomb, bad)
    with zipfile.ZipFile(bad) as archive:
        assert any(name.endswith("data.pkl") for name in archive.namelist())
    content = bytearray((megatron / "__0_0.distcp").read_bytes())
    root = pickle.loads((megatron / ".metadata").read_bytes())  # our own file, just written
    place = root.storage_data[next(where for where in root.storage_data if where.fqn.startswith("embedding"))]
    content[place.offset : place.offset + place.length] = bad.read_bytes().rjust(place.length, b"\0")
    (megatron / "__0_0.distcp").write_bytes(content)


@pytest.mark.parametrize("attack", [hostile_metadata, hostile_common, hostile_tensor])
def test_hostile_pickles_are_named_and_not_run(
    megatron: Path, tmp_path: Path, attack: Callable[[Path, Hostile], None]
) -> None:
    witness = tmp_path / "witness"
    attack(megatron, Hostile(witness))
    assert "wants to run `posix.mkdir`" in refused(megatron, tmp_path)
    assert not witness.exists()


def test_a_torch_class_that_runs_code_is_refused() -> None:
    for module, name in (("torch", "load"), ("torch.hub", "load"), ("builtins", "eval"), ("functools", "partial")):
        with pytest.raises(ArtifactError, match=f"{module}.{name}"):
            loads(f"c{module}\n{name}\n.".encode(), Path("x"))


def test_known_classes_stay_stand_ins() -> None:
    """A class of the format is never imported, whatever its arguments."""
    found = loads(b"cmegatron.core.no_such_module\nThing\n(S'x'\ntR.", Path("x"))
    assert found.global_name == "megatron.core.no_such_module.Thing"
    assert found.arguments == ("x",)
    assert "megatron" not in sys.modules


def test_a_place_outside_the_folder(megatron: Path, tmp_path: Path) -> None:
    root = pickle.loads((megatron / ".metadata").read_bytes())  # our own file, just written
    for info in root.storage_data.values():
        info.relative_path = "../../../etc/passwd"
    (megatron / ".metadata").write_bytes(pickle.dumps(root))
    assert "no file of this folder" in refused(megatron, tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("num_moe_experts: 8", "MoE"),
        ("multi_latent_attention: true", "MLA"),
        ("hybrid_override_pattern: M*M*", "hybrid"),
        ("fp8: hybrid", "fp8"),
        ("add_bias_linear: true", "linear biases"),
        ("rotary_percent: 0.5", "rope"),
        ("num_layers: 3", "`layers` 3 against 4"),
        ("vocab_size: 100", "`vocab` 100 against 320"),
        ("num_layers: many", "mistypes"),
    ],
)
def test_run_configs_that_do_not_convert(megatron: Path, tmp_path: Path, line: str, words: str) -> None:
    path = megatron / "run_config.yaml"
    key = line.partition(":")[0]
    kept = [row for row in path.read_text().splitlines() if not row.startswith(f"  {key}:")]
    at = kept.index("model:") + 1
    path.write_text("\n".join([*kept[:at], f"  {line}", *kept[at:]]))
    assert words in refused(megatron, tmp_path)


def test_a_run_config_of_an_adapter_or_of_nothing(megatron: Path, tmp_path: Path) -> None:
    path = megatron / "run_config.yaml"
    whole = path.read_text()
    path.write_text(whole + "\npeft:\n  _target_: megatron.bridge.peft.lora.LoRA\n")
    assert "adapter" in refused(megatron, tmp_path)
    path.write_text("model: [")
    assert "cannot be read as YAML" in refused(megatron, tmp_path)


def test_another_model_than_the_one_given(megatron: Path, tmp_path: Path) -> None:
    tied = make(tmp_path / "tied", "llama-tied")
    assert "`tied` False against True" in refused(megatron, tmp_path, tied)
    qwen = make(tmp_path / "qwen2", "qwen2")
    (megatron / "run_config.yaml").unlink()
    assert "which a qwen2 model has" in refused(megatron, tmp_path, qwen)
    assert "an output layer of its own" in refused(megatron, tmp_path, tied)


def test_a_smaller_vocabulary_than_the_config(source: Path, megatron: Path, tmp_path: Path) -> None:
    (megatron / "run_config.yaml").unlink()
    edit(megatron / "hf_config" / "config.json", vocab_size=VOCAB + 10)
    assert f"vocabulary of {VOCAB} rows, the model's config says {VOCAB + 10}" in refused(megatron, tmp_path)


def test_no_description_at_all(megatron: Path, tmp_path: Path) -> None:
    (megatron / "run_config.yaml").unlink()
    (megatron / "hf_config" / "config.json").unlink()
    assert "does not say which model it is" in refused(megatron, tmp_path)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("decoder.layers.mlp.experts.experts.linear_fc1.weight", "MoE"),
        ("decoder.layers.self_attention.linear_kv_down_proj.weight", "MLA"),
        ("decoder.layers.mixer.in_proj.weight", "hybrid"),
        ("decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight", "adapter"),
        ("decoder.layers.self_attention.linear_qkv.bias", "does not have"),
    ],
)
def test_tensors_that_belong_to_another_kind(megatron: Path, tmp_path: Path, key: str, words: str) -> None:
    root = pickle.loads((megatron / ".metadata").read_bytes())  # our own file, just written
    norm = "decoder.final_layernorm.weight"
    root.state_dict_metadata[key] = root.state_dict_metadata[norm]
    where = next(where for where in root.storage_data if where.fqn == norm)
    root.storage_data[type(where)(key, where.offset)] = root.storage_data[where]
    (megatron / ".metadata").write_bytes(pickle.dumps(root))
    assert words in refused(megatron, tmp_path)


def test_fp8_weights_are_refused(source: Path, megatron: Path, tmp_path: Path) -> None:
    root = pickle.loads((megatron / ".metadata").read_bytes())  # our own file, just written
    root.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"].properties.dtype = torch.float8_e4m3fn
    (megatron / ".metadata").write_bytes(pickle.dumps(root))
    assert "fp8" in refused(megatron, tmp_path)


def test_a_target_that_holds_something(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "precious").write_text("kept")
    with pytest.raises(OutputError, match="exists already"):
        hf_to_megatron(source, target)
    assert (target / "precious").read_text() == "kept"
    hf_to_megatron(source, target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not (target / "precious").exists()


@pytest.mark.parametrize("direction", ["hf_to_megatron", "megatron_to_hf"])
@pytest.mark.parametrize("existing", [False, True])
def test_disk_full(source: Path, megatron: Path, tmp_path: Path, direction: str, existing: bool) -> None:
    """The kernel refuses writes past a size, as a full disk does in the middle of a file."""
    target = tmp_path / "out"
    if existing:
        target.mkdir()
        (target / "precious").write_text("kept")
    convert: Callable[..., object] = hf_to_megatron if direction == "hf_to_megatron" else megatron_to_hf
    given = source if direction == "hf_to_megatron" else megatron
    with longest_file(200_000), pytest.raises(OutputError, match="file too large") as caught:
        convert(given, target, overwrite=existing)
    assert caught.value.message == f"cannot write `{target}`: file too large"
    assert str(caught.value.hint).startswith("raise the file size limit")
    assert [path.name for path in tmp_path.glob("*out*")] == (["out"] if existing else [])
    if existing:
        assert (target / "precious").read_text() == "kept"


def test_killed_half_way(source: Path, tmp_path: Path) -> None:
    def die(phase: str, done: int, total: int) -> None:
        if done > total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def convert() -> int:
        hf_to_megatron(source, tmp_path / "out", progress=die)
        return 0

    assert Fork(convert).wait(120) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.tmp"]
    hf_to_megatron(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_target(source: Path, tmp_path: Path) -> None:
    def second(phase: str, done: int, total: int) -> None:
        with pytest.raises(OutputError, match="another process is writing"):
            hf_to_megatron(source, tmp_path / "out", verify="none")

    hf_to_megatron(source, tmp_path / "out", progress=second)
    assert load_policy_weights(tmp_path / "out").kind == "checkpoint_megatron"


def test_weights_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "hf", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(111, 64)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="up_proj"):
        hf_to_megatron(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
