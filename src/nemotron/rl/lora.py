"""Low-rank adapters through peft: trained in the place of the full weights, merged when they are saved.

The adapters are injected into the model, so it stays a Llama (or whatever it is) for everything that looks at it.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nemotron.config.schema.dtensor import LoraConfig
from nemotron.contracts.adapters import adapted, meant
from nemotron.disk.documents import regular
from nemotron.errors import ArtifactError, ConfigError, NotAvailableError
from nemotron.install import install_extra
from nemotron.rl.frozen import halve
from nemotron.rl.policy import Policy
from nemotron.rl.scalar_model import ScalarModel
from nemotron.suggest import listed

FOLDER = "adapter"
"""In the folder of a model in a checkpoint."""
ADAPTER = Path("policy", FOLDER)
"""Of the policy: ``adapter_model.safetensors`` and ``adapter_config.json``, as ``from_pretrained`` of peft wants."""
_WEIGHTS = "adapter_model.safetensors"
_NAME = "default"
_HEAD = "score"
Adapted = TypeVar("Adapted", Policy, ScalarModel)


def add_adapters(policy: Policy, config: LoraConfig, *, seed: int) -> Policy:
    """``policy`` with fresh adapters; only they are trained. It computes what it did before, as the second matrix is 0.

    Raises:
        ConfigError: the modules named do not exist. NotAvailableError: peft is not installed.
    """
    # A new wrapper: the old one has rearranged the model as it was.
    return _halved(Policy(_injected(policy.model, config, seed), precision=policy.precision))


def add_scalar_adapters(model: ScalarModel, config: LoraConfig, *, seed: int) -> ScalarModel:
    """The same for a model with a scalar head, which is new and so is trained as it is. Raises as `add_adapters`."""
    found = ScalarModel(_injected(model.model, config, seed), precision=model.precision)
    found.model.score.requires_grad_(True)
    _halved(found)
    found.model.peft_config[_NAME].modules_to_save = [_HEAD]
    return found


def _halved(found: Adapted) -> Adapted:
    """With frozen matrices in the number type that they are multiplied in."""
    if found.fused is not None:
        found.fused.rearrange_frozen(found.dtype)  # from the weights as they are, before any of them is rounded
    halve(found.model, found.dtype, exact=True)
    return found


class Reference(Policy):
    """The policy before training: the same model with its adapters off, so that there is no second copy of it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model, precision=policy.precision)
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.fused = None if policy.fused is None else policy.fused.without_adapters()
        self._layers = [module for module in policy.model.modules() if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Every forward of the model happens in it, sampling included."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            with super().autocast():
                yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)


def _injected(model: nn.Module, config: LoraConfig, seed: int) -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise NotAvailableError("LoRA needs the package `peft`", hint=install_extra("local")) from error
    targets, excluded = _targets(model, config)
    lora = peft.LoraConfig(
        r=config.dim,
        lora_alpha=config.alpha,
        target_modules=targets,
        exclude_modules=excluded or None,
        init_lora_weights=True,
        base_model_name_or_path=getattr(model.config, "_name_or_path", None) or None,
    )
    model.requires_grad_(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # peft corrects it by itself
            found = peft.inject_adapter_in_model(lora, model, adapter_name=_NAME)
    except ValueError as error:
        raise ConfigError(
            f"adapters do not fit the policy: {error}",
            hint="leave out the modules that peft refuses: for Mamba "
            "`policy.dtensor_cfg.lora_cfg.exclude_modules=[out_proj]`",
        ) from error
    _initialise(found, config.lora_A_init, seed)
    return found


def _targets(model: nn.Module, config: LoraConfig) -> tuple[list[str], list[str]]:
    """What peft is told to adapt and to leave out: names as they are, or whole paths where one has a ``*``."""
    named = config.target_modules or (_linears(model) if config.match_all_linear else [])
    if not named:
        raise ConfigError(
            "no module gets an adapter",
            hint="list `policy.dtensor_cfg.lora_cfg.target_modules`, or set `match_all_linear=true`",
        )
    matrices = [path for path, module in model.named_modules() if _is_matrix(module)]
    if unknown := [name for name in named if not meant(name, matrices)]:
        raise ConfigError(
            f"no matrix of the policy is called {listed(unknown)}",
            hint=f"`policy.dtensor_cfg.lora_cfg.target_modules` may name {listed(sorted(_leaves(matrices)))}",
        )
    found = adapted(matrices, named, config.exclude_modules)
    if not found:
        raise ConfigError(
            "no module gets an adapter: all of them are in `exclude_modules`",
            hint="shorten `policy.dtensor_cfg.lora_cfg.exclude_modules`",
        )
    if shared := _shared(model, found):
        raise ConfigError(
            f"{listed(shared)} cannot have an adapter: the model reads one matrix as embedding and as output layer",
            hint=f"leave {'it' if len(shared) == 1 else 'them'} out of `policy.dtensor_cfg.lora_cfg.target_modules`",
        )
    if any("*" in name for name in (*named, *config.exclude_modules)):
        return found, []
    return named, config.exclude_modules


def _shared(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Those of the modules whose matrix is another module's, too.

    Trained, an adapter changes what one of them computes; merged, it would change the matrix for both.
    """
    owners = Counter(id(module.weight) for _, module in model.named_modules() if _is_matrix(module))
    return [path for path in paths if owners[id(model.get_submodule(path).weight)] > 1]


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


def _leaves(paths: Iterable[str]) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


def _linears(model: Any) -> list[str]:
    """Names of all linear layers but the heads: of GPT-2 they are called `Conv1D`, of others classes of their own."""
    from transformers.pytorch_utils import Conv1D

    written = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear | Conv1D)}
    return sorted(_leaves(name for name, one in linear.items() if one is not written) - {"lm_head", _HEAD})


def _initialise(model: nn.Module, kind: str, seed: int) -> None:
    """First matrices as NeMo-RL's Automodel draws them (``xavier``: normal, else Kaiming uniform), second ones 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_A" in name:
            drawn = torch.empty(parameter.shape)
            if kind == "xavier":
                nn.init.xavier_normal_(drawn, generator=generator)
            else:
                nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=generator)
            parameter.data.copy_(drawn)


def _learned(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, under peft's names for a file: the adapters, and a head that is new."""
    return {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name or parameter.requires_grad
    }


def write_adapter(policy: Policy | ScalarModel, folder: Path) -> None:
    """Write the adapters so that peft reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: parameter.detach().cpu().contiguous() for name, parameter in _learned(policy.model).items()}
    save_file(state, folder / _WEIGHTS)
    config: Any = policy.model.peft_config[_NAME]
    config.save_pretrained(str(folder))


def read_adapter(policy: Policy | ScalarModel, folder: Path) -> None:
    """Put the adapters of ``folder`` into ``policy``. Raises ArtifactError when they do not fit."""
    try:
        found = load_file(regular(folder / _WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"the adapter `{folder}` cannot be read: {error}") from error
    parameters = _learned(policy.model)
    if {name: tensor.shape for name, tensor in found.items()} != {n: p.shape for n, p in parameters.items()}:
        raise ArtifactError(f"the adapter `{folder}` was made for other modules or another rank")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(found[name])


class Merged:
    """The full weights as the adapters make them, computed when they are asked for: what a checkpoint stores."""

    def __init__(self, policy: Policy | ScalarModel) -> None:
        self._policy = policy

    def write_adapter(self, folder: Path) -> None:
        """Write the adapters by themselves."""
        write_adapter(self._policy, folder)

    @property
    def config(self) -> Any:
        """The model's own config."""
        return self._policy.model.config

    def state_dict(self) -> dict[str, Tensor]:
        """As the model without adapters would give it."""
        return dict(self._plain().state_dict())

    def save_pretrained(self, folder: Path) -> None:
        """Write the model without adapters."""
        self._plain().save_pretrained(folder)

    def _plain(self) -> Any:
        """A copy with every adapter merged into its layer and taken out."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        # In float32, whatever the frozen weights are kept in: a sum in half precision would lose the adapters.
        model: Any = copy.deepcopy(self._policy.model).float()
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, module.get_base_layer())
        del model.peft_config
        return model
