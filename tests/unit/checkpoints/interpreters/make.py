"""Write this folder's files: the pickles of one small checkpoint as the running interpreter makes them by itself.

PYTHONPATH=src python3.11 tests/unit/checkpoints/interpreters/make.py

Megatron-Core's own writer leaves the form to the interpreter: a file of Debian's 3.11.2 differs from one of 3.11.7.
The data file is the same everywhere and is kept once.
"""

from __future__ import annotations

import argparse
import enum
import pathlib
import pickle
import platform
import shutil
import signal
import sys
import tempfile
import types

import torch

from nemotron.checkpoints.megatron.families import from_hf
from nemotron.checkpoints.megatron.writer import write_iteration

HERE = pathlib.Path(__file__).parent
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


def state() -> dict[str, torch.Tensor]:
    """The weights under their Hugging Face names: every element another number."""
    shapes = {
        "model.embed_tokens.weight": (8, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.0.self_attn.k_proj.weight": (2, 4),
        "model.layers.0.self_attn.v_proj.weight": (2, 4),
        "model.layers.0.self_attn.o_proj.weight": (4, 4),
        "model.layers.0.mlp.gate_proj.weight": (6, 4),
        "model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.layers.0.mlp.down_proj.weight": (4, 6),
        "model.layers.0.input_layernorm.weight": (4,),
        "model.layers.0.post_attention_layernorm.weight": (4,),
        "model.norm.weight": (4,),
    }
    made, first = {}, 0
    for name, shape in shapes.items():
        made[name] = (first + torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).reshape(shape)
        first += made[name].numel()
    return made


def _foreign_enums() -> types.ModuleType:
    """Enums in a module of Megatron's name, as its arguments hold them."""
    module = types.ModuleType("megatron.core.enums")
    sys.modules |= {"megatron": types.ModuleType("megatron"), "megatron.core": types.ModuleType("megatron.core")}
    sys.modules[module.__name__] = module
    for kind, name, members in (
        (enum.Enum, "ModelType", {"encoder_or_decoder": 1}),
        (enum.IntEnum, "Level", {"low": 1}),
        (enum.Flag, "Parts", {"weights": 1, "optimizer": 2}),
    ):
        setattr(module, name, kind(name, members, module=module.__name__))
    return module


def main() -> None:
    """Write ``python<version>/`` and, where it is missing, the data file."""
    enums = _foreign_enums()
    target = HERE / f"python{platform.python_version()}"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        written = pathlib.Path(temporary) / "iter"
        write_iteration(state(), from_hf(CONFIG, "here"), written)
        for file in written.iterdir():
            if file.name not in (".metadata", "common.pt", "train_state.pt") and not (HERE / file.name).exists():
                shutil.copyfile(file, HERE / file.name)
        metadata = pickle.loads((written / ".metadata").read_bytes())
        (target / ".metadata").write_bytes(pickle.dumps(metadata))
    arguments = argparse.Namespace(
        model_type=enums.ModelType.encoder_or_decoder,
        level=enums.Level.low,
        parts=enums.Parts.weights | enums.Parts.optimizer,
        exit_signal=signal.SIGTERM,
        save=pathlib.PosixPath("/checkpoints"),
        names={"one"},
        params_dtype=torch.bfloat16,
    )
    torch.save({"args": arguments, "checkpoint_version": 3.0, "iteration": 7}, target / "common.pt")


if __name__ == "__main__":
    main()
