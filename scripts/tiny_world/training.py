"""What both trainings share: the architecture, batches, a supervised loop, saving, and quick sampling."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizer as tiny_tokenizer
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

# One thread, whatever the environment says: two threads on a busy machine wait for each other most of the time, and the
# order of sums must not depend on it.
torch.set_num_threads(1)

ASSETS = Path(__file__).resolve().parents[2] / "src/nemotron/assets/tiny_world"


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens to read and tokens to write; only the written ones have a loss."""

    prompt: list[int]
    target: list[int]


def new_model(tokenizer: Any) -> LlamaForCausalLM:
    """A Llama of about 0.9M parameters with fresh weights (seed them with `torch.manual_seed` before)."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # About 1/sqrt(hidden): with the usual 0.02 the attention of so narrow a model starts flat, and copying
                # the slots is learned ten times later.
                weight.normal_(0.0, 0.08)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.div_(math.sqrt(2 * config.num_hidden_layers))
    return model


def run_batch(model: LlamaForCausalLM, batch: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy (nats per token) over the targets, and the hidden states [rows, positions, hidden], float32.

    Logits are computed only where there is a target. Matrix products run in bfloat16.
    """
    width = max(len(e.prompt) + len(e.target) for e in batch)
    ids = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), -100)
    for i, e in enumerate(batch):
        end = len(e.prompt) + len(e.target)
        ids[i, :end] = torch.tensor(e.prompt + e.target)
        labels[i, len(e.prompt) : end] = torch.tensor(e.target)
    # Padding is on the right, so the causal mask alone keeps it out of sight of every target.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state
    hidden = hidden.float()
    wanted = labels[:, 1:]
    where = wanted != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][where]), wanted[where]), hidden


def fit(
    model: LlamaForCausalLM,
    loss_of: Callable[[float], torch.Tensor],
    report: Callable[[], str],
    *,
    steps: int,
    lr: float,
    extra: Iterable[torch.nn.Parameter] = (),
) -> None:
    """Train for ``steps`` with AdamW, 5% warm-up and a cosine to a twentieth of ``lr``.

    ``loss_of`` is called with the finished share of training (0 to 1) and returns the loss of one batch; ``report`` is
    printed about ten times; ``extra`` are parameters to train besides the model's.
    """
    # With bfloat16 products the plain attention is 1.6 times faster here than the fused one.
    model.set_attn_implementation("eager")
    parameters = [*model.parameters(), *extra]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    started, total, every = time.monotonic(), 0.0, max(1, steps // 10)
    model.train()
    for step in range(1, steps + 1):
        loss = loss_of((step - 1) / steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if step % every == 0:
            said = report()
            model.train()
            print(f"step {step}  {time.monotonic() - started:.0f} s  loss {total / every:.3f}  {said}", flush=True)
            total = 0.0
    model.set_attn_implementation("sdpa")


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    *,
    pad: int,
    end: int,
    limit: int,
    temperature: float,
) -> list[list[int]]:
    """One response per prompt, ``end`` included when it was drawn. ``temperature`` 0 is greedy."""
    model.eval()
    rows = 512
    drawn: list[list[int]] = []
    for start in range(0, len(prompts), rows):
        chunk = prompts[start : start + rows]
        width = max(map(len, chunk))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in chunk])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chunk])
        options: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        settings = GenerationConfig(max_new_tokens=limit, eos_token_id=end, pad_token_id=pad, **options)
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
        drawn += [row[: row.index(end) + 1] if end in row else row for row in out]
    return drawn


def save(model: LlamaForCausalLM, tokenizer: Any, folder: Path) -> None:
    """Write an ordinary Hugging Face checkpoint in bfloat16."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=32
    )
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.save_pretrained(folder)
    tiny_tokenizer.save(tokenizer, folder)


def load(folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """Read a shipped checkpoint, computing in float32."""
    return (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True),
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


def read_rows(split: str, data: Path = ASSETS / "data") -> list[dict[str, Any]]:
    """The rows of a split."""
    with (data / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
