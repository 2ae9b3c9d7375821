"""A model folder that the run could not load, or whose template takes nothing, is refused before the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from nemotron import api
from nemotron.checkpoints import hf
from nemotron.checkpoints.kinds import OTHER_SCORERS, unknown_type
from nemotron.compile.probes.model_files import read_model
from nemotron.config.resolvers import ASSETS
from nemotron.errors import ArtifactError, ConfigError, Finding
from nemotron.place import Place
from nemotron.rl.chat import Chat

Edit = Callable[[Path], object]


def config(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def template(text: str) -> Edit:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(ASSETS / "tiny_world" / "policy", tmp_path / "model"))


def errors(step: str, name: str = "./model", *words: str) -> list[Finding]:
    plan = api.compile(step, "tiny", [f"policy.model_name={name}", *words])
    return [finding for finding in plan.findings if finding.severity == "error"]


def test_a_whole_model_has_no_errors(model: Path) -> None:
    assert errors("dpo", "./model", "~policy.pretrained_checkpoint") == []


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (config(num_hidden_layers=9), "lacks the weight `model.layers."),
        (config(intermediate_size=77), "its `config.json` means"),
        (config(model_type="nope"), "`model_type` `nope`"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "lacks a tokenizer"),
        (template('{{ raise_exception("no system") }}'), "no system"),
    ],
)
def test_what_the_run_would_refuse_the_plan_does(model: Path, edit: Edit, says: str) -> None:
    edit(model)
    found = errors("dpo", "./model", "~policy.pretrained_checkpoint")
    assert [(error.key, error.exit_code) for error in found if says in error.message] in (
        [("policy.model_name", 6)],
        [("policy.tokenizer.chat_template", 6)],
    ), found


MODELS = {"policy": "policy.model_name", "judge": "env.nemo_gym.genrm_model.responses_api_models.vllm_model.model"}
"""A folder of the tiny world -> a key that names a model of that kind in rlhf."""


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_beside_an_adapter_is_refused_wherever_one_is_named(tmp_path: Path, kind: str) -> None:
    """transformers would apply the adapter and freeze the model."""
    folder = Path(shutil.copytree(ASSETS / "tiny_world" / kind, tmp_path / "model"))
    shutil.copytree(ASSETS / "tiny_world" / "adapter", folder, dirs_exist_ok=True)
    plan = api.compile("rlhf", "tiny", {MODELS[kind]: str(folder)})
    [error] = [one for one in plan.findings if "a whole model and an adapter" in one.message]
    assert (error.key, error.exit_code, error.severity) == (MODELS[kind], 6, "error")
    assert "merge_lora" in str(error.hint)
    with pytest.raises(ArtifactError, match="a whole model and an adapter"):
        hf.headers(folder)


def stored(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    """An edit of the weights."""

    def edit(folder: Path) -> None:
        path = folder / hf.SINGLE
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return edit


def with_more(name: str) -> Edit:
    return stored(lambda weights: {**weights, name: torch.zeros(3)})


def in_shards(folder: Path, index: str | None) -> None:
    """As two files that ``index`` lists, or nothing does."""
    weights = load_file(folder / hf.SINGLE)
    (folder / hf.SINGLE).unlink()
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        save_file({name: weights[name] for name in names}, folder / f"model-0000{number}-of-00002.safetensors")
    if index is not None:
        (folder / hf.INDEX).write_text(index)


ROWS = [
    (config(num_hidden_layers=3), "means no such layer"),
    (with_more("model.layers.9.mlp.up_proj.weight"), "means no such layer"),
    (stored(lambda weights: {name: one.to(torch.int8) for name, one in weights.items()}), "as `int8`"),
    (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised weights (`gptq`)"),
    (config(tie_word_embeddings=False), "lacks the weight `lm_head.weight`"),
    (config(model_type="nope", auto_map={"AutoModelForCausalLM": "code.Model"}), "`model_type` `nope`"),
    (lambda folder: in_shards(folder, None), "no `model.safetensors.index.json`"),
    (lambda folder: in_shards(folder, "{"), "model.safetensors.index.json` cannot be read"),
]
"""Edits of a whole model, and what is said of it."""


@pytest.mark.parametrize(("edit", "says"), ROWS)
@pytest.mark.parametrize("kind", MODELS)
def test_weights_that_would_not_be_read_as_they_are_meant_are_refused(
    tmp_path: Path, kind: str, edit: Edit, says: str
) -> None:
    edit(Path(shutil.copytree(ASSETS / "tiny_world" / kind, tmp_path / "model")))
    words = [f"{MODELS[kind]}={tmp_path / 'model'}", "~policy.pretrained_checkpoint"]
    found = [one for one in api.compile("rlhf", "tiny", words).findings if one.severity == "error"]
    assert [(error.key, error.exit_code) for error in found] == [(MODELS[kind], 6)], found
    assert says in found[0].message


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("lm_head.bias", True),
        ("model.layers.0.mlp.up_proj.weight_scale", True),
        ("score.weight", False),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),
    ],
)
def test_weights_that_nothing_reads_are_named(model: Path, name: str, warned: bool) -> None:
    with_more(name)(model)
    plan = api.compile("dpo", "tiny", ["policy.model_name=./model", "~policy.pretrained_checkpoint"])
    assert [one for one in plan.findings if one.severity == "error"] == []
    assert any(name in one.message for one in plan.findings if one.severity == "warning") == warned


def test_a_link_to_nothing_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").symlink_to("lost")
    found = [error for error in errors("dpo", "owner/model") if error.key == "policy.model_name"]
    assert ["a link to a folder that is not there" in error.message for error in found] == [True]
    plan = api.compile("hf_to_megatron", "tiny", {"hf_model": "owner/model", "output_dir": "out"})
    assert any(one.severity == "error" and "no folder `owner/model`" in one.message for one in plan.findings)


def test_the_plan_of_every_step_tries_the_template(model: Path) -> None:
    template('{{ raise_exception("no system") }}')(model)
    for step in ("rlhf", "ppo", "rm", "sft/nemo_rl"):
        assert any("no system" in error.message for error in errors(step)), step


@pytest.mark.parametrize(
    "text",
    [
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[-1].content }}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('a system') }}{% endif %}{{ messages[-1].content }}",
    ],
)
def test_a_template_that_takes_some_conversations_may_be_of_those_rows(model: Path, text: str) -> None:
    template(text)(model)
    assert not any("takes no conversation" in error.message for error in errors("dpo"))


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
KNOWN_ROLES = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('who is ' + m.role) }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
ASKED, TOLD = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    ("step", "row"),
    [
        ("sft/nemo_rl", {"messages": [*ASKED, *TOLD]}),
        ("dpo", {"prompt": ASKED, "chosen": "Hello!", "rejected": "Go away."}),
        ("rm", {"chosen": [*ASKED, *TOLD], "rejected": [*ASKED, {"role": "assistant", "content": "No."}]}),
        ("rlhf", {"prompt": ASKED}),
        ("ppo", {"prompt": ASKED}),
    ],
)
@pytest.mark.parametrize(
    ("text", "role", "says"), [(NO_SYSTEM, "system", "no system here"), (KNOWN_ROLES, "developer", "who is developer")]
)
def test_rows_whose_roles_the_template_refuses_are_found_with_their_place(
    model: Path, step: str, row: dict[str, list[dict[str, str]]], text: str, role: str, says: str
) -> None:
    """The run would have ended at the first of them, once the models are loaded."""
    template(text)(model)
    rows = [row, *([{**row, key: [{"role": role, "content": "Be kind."}, *row[key]]} for key in row][:1])]
    if step == "rm":
        rows[1]["rejected"] = [rows[1]["chosen"][0], *rows[1]["rejected"]]
    (model.parent / "rows.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    data = ("data.train.data_path=rows.jsonl", "data.validation=null")
    found = [error for error in errors(step, "./model", *data) if error.name == "template-refuses-rows"]
    assert [(one.key, one.exit_code, one.origin and one.origin.line) for one in found] == [
        ("data.train.data_path", 5, 2)
    ]
    assert f"refuses a conversation of {role}, user" in found[0].message
    assert says in found[0].message
    (model.parent / "rows.jsonl").write_text(f"{json.dumps(row)}\n")
    assert not any(error.name == "template-refuses-rows" for error in errors(step, "./model", *data))


def test_weights_that_a_checkpoint_replaces_need_not_fit(model: Path) -> None:
    config(intermediate_size=77)(model)
    assert not any("its `config.json` means" in error.message for error in errors("dpo"))


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 9}, {"vocab_size": 100}])
def test_a_conversion_is_refused_where_the_weights_are_of_another_model(model: Path, changes: dict[str, int]) -> None:
    config(**changes)(model)
    plan = api.compile("hf_to_megatron", "tiny", {"hf_model": model, "output_dir": "out"})
    [error] = [finding for finding in plan.findings if finding.severity == "error"]
    assert error.exit_code == 6
    assert "`config.json` means" in error.message


@pytest.mark.parametrize("name", ["my model", "a$b", "owner/my model"])
def test_what_cannot_be_a_repository_is_not_downloaded(model: Path, name: str) -> None:
    [error] = [error for error in errors("dpo", f"'{name}'") if error.key == "policy.model_name"]
    assert "neither a folder nor the name of a repository" in error.message
    model.rename(model.parent / "my model")
    assert not any(error.key == "policy.model_name" for error in errors("dpo", "'my model'"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("tokenizer.model", ""),
            ("vocab.txt", ""),
            ("vocab.json", "{}"),
            ("spiece.model", ""),
            ("qwen.tiktoken", ""),
        ),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "code.Tokenizer"}}'),
        ("tokenizer_config.json", '{"tokenizer_class": "ByT5Tokenizer"}'),
    ],
)
def test_a_slow_tokenizer_is_one(model: Path, name: str, content: str) -> None:
    (model / "tokenizer.json").unlink()
    (model / name).write_text(content)
    facts = read_model(str(model), Place())
    assert facts is not None
    assert facts.has_tokenizer


def test_types_of_models_are_those_of_transformers() -> None:
    assert unknown_type({"model_type": "qwen3"}) is unknown_type({"model_type": "gemma3_text"}) is None
    assert unknown_type({"model_type": "qwen"}) == "qwen"
    assert unknown_type({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}) == "mine"


@pytest.mark.parametrize(
    ("step", "key", "kind", "says"),
    [
        ("dpo", "policy.model_name", "t5", "no causal language model"),
        ("rlhf", MODELS["judge"], "t5", "no causal language model"),
        ("dpo", "policy.model_name", "bert", None),
        ("rm", "policy.model_name", "bert", "no decoder with a head `score`"),
        ("rm", "policy.model_name", "mamba", "no decoder with a head `score`"),
        ("rm", "policy.model_name", "gpt2", None),
        ("ppo", "reward_model.model_name", "deberta-v2", "no decoder with a head `score`"),
        ("eval/reward_audit", "reward_model.path", "roberta", "no decoder with a head `score`"),
    ],
)
def test_types_that_transformers_has_no_such_model_of_are_refused(
    tmp_path: Path, step: str, key: str, kind: str, says: str | None
) -> None:
    scores = key.startswith("reward_model")
    folder = Path(shutil.copytree(ASSETS / "tiny_world" / ("reward_model" if scores else "policy"), tmp_path / "model"))
    config(model_type=kind)(folder)
    words = ["~policy.pretrained_checkpoint"] if key == "policy.model_name" and step != "rm" else []
    found = api.compile(step, "tiny", [f"{key}={folder}", *words]).findings
    told = [one for one in found if f"of type `{kind}`: transformers has no" in one.message]
    assert [(one.key, one.exit_code, says in one.message) for one in told] == ([(key, 6, True)] if says else [])


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_saved_without_its_output_layer_is_no_policy_unless_it_is_tied(model: Path, tied: bool) -> None:
    """As `AutoModel.save_pretrained` writes it: names begin one level deeper."""
    stored(lambda weights: {name.removeprefix("model."): one for name, one in weights.items()})(model)
    config(tie_word_embeddings=tied, architectures=["LlamaModel"])(model)
    found = errors("dpo", "./model", "~policy.pretrained_checkpoint")
    assert ["lacks the weight `lm_head.weight`" in error.message for error in found] == ([] if tied else [True])


def test_an_untied_reward_model_is_told_to_be_one_and_not_to_be_tied(model: Path) -> None:
    config(tie_word_embeddings=False, architectures=["LlamaForSequenceClassification"])(model)
    [error] = errors("dpo", "./model", "~policy.pretrained_checkpoint")
    assert (error.name, error.key) == ("not-a-language-model", "policy.model_name")


@pytest.mark.full
def test_classifiers_without_a_linear_head_are_known_by_name() -> None:
    import inspect

    import transformers
    from transformers.models.auto import modeling_auto

    both = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    classes = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    sources = {kind: inspect.getsource(getattr(transformers, classes[kind])) for kind in both & classes.keys()}
    marks = ("GenericForSequenceClassification", "self.score =")
    assert sorted(OTHER_SCORERS) == sorted(k for k, source in sources.items() if not any(m in source for m in marks))


def tokenizer(**changes: Any) -> Edit:
    """Changes of `tokenizer_config.json`; None takes a key away."""

    def edit(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        settings = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))

    return edit


EXTRA = [
    tokenizer(additional_special_tokens=["<|a|>", "<|end|>"]),
    tokenizer(extra_special_tokens={"image_token": "<|a|>"}),
    tokenizer(eos_token={"content": "<|a|>", "__type": "AddedToken"}),
    tokenizer(added_tokens_decoder={"768": {"content": "<|a|>", "special": True}}),
    lambda folder: (folder / "special_tokens_map.json").write_text('{"sep_token": "<|a|>"}'),
]
"""Edits that give the tokenizer a token more than the embedding has rows."""


@pytest.mark.parametrize("edit", EXTRA)
def test_tokens_that_are_added_when_a_tokenizer_is_loaded_need_rows(model: Path, edit: Edit) -> None:
    edit(model)
    facts = read_model(str(model), Place())
    assert facts is not None
    assert facts.tokens == len(AutoTokenizer.from_pretrained(model)) == 769
    [error] = errors("dpo", "./model", "~policy.pretrained_checkpoint")
    assert "769 tokens" in error.message
    assert "resize_token_embeddings" in str(error.hint)
    judge = api.compile("rlhf", "tiny", {MODELS["judge"]: str(model)})
    assert any(one.key == MODELS["judge"] and "769 tokens" in one.message for one in judge.findings)


NAMELESS = [tokenizer(eos_token=None), lambda folder: (folder / "tokenizer_config.json").unlink()]
"""Edits after which the tokenizer names no end of sequence."""


@pytest.mark.parametrize("edit", NAMELESS)
@pytest.mark.parametrize("step", ["dpo", "sft/nemo_rl", "rm", "rlhf"])
def test_an_end_of_sequence_is_named_by_the_tokenizer_or_by_the_model(model: Path, edit: Edit, step: str) -> None:
    edit(model)
    drop = ["~policy.pretrained_checkpoint"] if step != "rm" else []  # its tiny config has none
    words = ("./model", "policy.tokenizer.name=./model", *drop)
    assert not any("end-of-sequence" in error.message for error in errors(step, *words))
    (model / hf.GENERATION_CONFIG).unlink()
    config(eos_token_id=None)(model)
    [error] = [error for error in errors(step, *words) if "end-of-sequence" in error.message]
    assert hf.GENERATION_CONFIG in str(error.hint)
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        Chat.load(str(model), "default", None, model=model)


@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast", None])
def test_a_usual_end_among_the_tokens_is_one_only_for_a_class_that_looks_for_it(model: Path, name: str | None) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["<|endoftext|>"] = content["model"]["vocab"].pop(sorted(content["model"]["vocab"])[-1])
    (model / "tokenizer.json").write_text(json.dumps(content))
    tokenizer(eos_token=None, tokenizer_class=name)(model)
    (model / hf.GENERATION_CONFIG).unlink()
    config(eos_token_id=None)(model)
    words = ("./model", "policy.tokenizer.name=./model", "~policy.pretrained_checkpoint")
    assert any("end-of-sequence" in error.message for error in errors("dpo", *words)) is (name is not None)


@pytest.mark.parametrize("step", ["dpo", "sft/nemo_rl"])
@pytest.mark.parametrize("content", ["{", '{"eos_token_id": "</s>"}', '{"eos_token_id": [[2]]}'])
def test_a_damaged_generation_config_is_found_where_nothing_samples(model: Path, step: str, content: str) -> None:
    (model / hf.GENERATION_CONFIG).write_text(content)
    words = [
        "policy.tokenizer.name=./model",
        "~policy.pretrained_checkpoint",
        "~policy.generation",
        "eval.heldout=null",
    ]
    [error] = errors(step, "./model", *words)
    assert (error.key, error.exit_code) == ("policy.model_name", 6)
    assert hf.GENERATION_CONFIG in error.message
    assert error.hint


def test_who_only_samples_may_stop_where_the_config_says(model: Path) -> None:
    tokenizer(eos_token=None)(model)
    (model / hf.GENERATION_CONFIG).unlink()
    config(eos_token_id=None)(model)
    words = ("./model", "policy.tokenizer.name=./model", "~policy.pretrained_checkpoint")
    stop = "policy.generation.stop_token_ids=[1]"
    assert not any("end-of-sequence" in error.message for error in errors("rlhf", *words, stop))
    chat = Chat.load(str(model), "default", None, model=model, stop_token_ids=[1])
    assert chat.ends == (1,)
    with pytest.raises(ConfigError, match="to learn"):
        _ = chat.end


def test_a_stop_that_the_model_has_no_row_for_is_refused(model: Path) -> None:
    words = ("./model", "policy.tokenizer.name=./model", "~policy.pretrained_checkpoint")
    [error] = errors("rlhf", *words, "policy.generation.stop_token_ids=[1,99999999]")
    assert error.key == "policy.generation.stop_token_ids"
    assert error.message.startswith("no response ends with token 99999999: the embedding of `./model` has ")


def test_the_end_that_only_the_model_names_is_learned(model: Path) -> None:
    before = Chat.load(str(model), "default", None, model=model)
    tokenizer(eos_token=None)(model)
    after = Chat.load(str(model), "default", None, model=model)
    assert (after.end, after.ends) == (before.end, before.ends)


def test_a_judge_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ASSETS / "tiny_world" / "judge", tmp_path / "model"))
    tokenizer(eos_token=None)(folder)
    config(eos_token_id=None)(folder)
    (folder / hf.GENERATION_CONFIG).unlink(missing_ok=True)
    plan = api.compile("rlhf", "tiny", {MODELS["judge"]: str(folder)})
    found = [one for one in plan.findings if one.key == MODELS["judge"]]
    assert [(one.severity, "end-of-sequence" in one.message) for one in found] == [("error", True)]
