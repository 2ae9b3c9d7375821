"""Whatever transformers raises on a damaged model is an error of the model, not a bug of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import nemotron
from nemotron.checkpoints.libraries import refusing_damage
from nemotron.errors import ArtifactError, EngineError
from nemotron.rl.chat import Chat

MODEL = Path(nemotron.__file__).parent / "assets" / "tiny_world" / "policy"


class PanicException(BaseException):
    """As Rust's are to Python."""


@pytest.mark.parametrize(
    "error", [AttributeError("x"), Exception("y"), KeyError(), PanicException("z"), OSError(5, "a")]
)
def test_what_a_library_raises_is_a_refusal(error: BaseException) -> None:
    with pytest.raises(ArtifactError, match="damaged: "), refusing_damage(lambda why: ArtifactError(f"damaged: {why}")):
        raise error


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), EngineError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_what_is_not_the_model_s_fault_stays(error: BaseException) -> None:
    with pytest.raises(type(error)), refusing_damage(ArtifactError):
        raise error


def test_a_number_type_that_is_none(tmp_path: Path) -> None:
    """It was an AttributeError of torch."""
    folder = shutil.copytree(MODEL, tmp_path / "model")
    text = (folder / "config.json").read_text()
    assert '"bfloat16"' in text
    (folder / "config.json").write_text(text.replace('"bfloat16"', '"bfmoat16"'))
    with pytest.raises(ArtifactError, match=r"cannot load tokenizer .*bfmoat16"):
        Chat.load(str(folder), "default", None, model=folder)


def test_a_number_that_no_tokenizer_takes(tmp_path: Path) -> None:
    """It was a bare Exception of the tokenizer's Rust."""
    folder = shutil.copytree(MODEL, tmp_path / "model")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"id": 0', '"id": 1e999', 1))
    with pytest.raises(ArtifactError, match="cannot load tokenizer"):
        Chat.load(str(folder), "default", None, model=folder)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_tokenizer_that_another_class_reads_is_no_tokenizer(tmp_path: Path, family: str) -> None:
    """transformers builds that of a Qwen2 anew from its vocabulary: one of whole words takes any text for nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(("<eos>", "<unk>", "one", "two"))}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
    message = [{"role": "user", "content": "one two"}]
    if family == "llama":
        assert Chat.load(str(tmp_path), None, None).encode(message) == [2, 3]
        return
    with pytest.raises(ArtifactError, match="takes it for a `Qwen2Tokenizer`"):
        Chat.load(str(tmp_path), None, None)
    (tmp_path / "config.json").unlink()
    assert Chat.load(str(tmp_path), None, None).encode(message) == [2, 3]
