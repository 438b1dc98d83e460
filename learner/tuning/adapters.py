"""Adapters: few parameters that move, beside an encoder that does not.

- ``lora:R``: LoRA (Hu et al., ICLR 2022). Two linear maps of each layer's attention, those that
  make queries and values, give W x + 2 B A x, where A is random, of rank R, and B starts at zero. A
  rank of 1 is refused: a product with one vector adds up in an order that depends on the number of
  rows, so a text's bits would depend on what is beside it (`learner.arithmetic`).
- ``ia3``: IA3 (Liu et al., NeurIPS 2022). Keys, values and what enters an output layer are
  multiplied by vectors that start at one.
- ``prefix:N``: prefix tuning (Li & Liang, ACL 2021). Each layer's attention sees N learned keys and
  values before those of a text (`learner.tuning.key_value_prefixes`).

LoRA and IA3 are those of the library peft. Either starts as exactly the encoder that it is added
to, a prefix nearly so. With ``@top:N`` the last N layers alone have one, and what the layers below
make of a text is kept.

In memory an adapter's parameters are among the encoder's, under peft's names; on disk they have a
file of their own, as peft writes it, and the encoder's file is as it was. Prefixes have such files
too, which peft refuses: it would count a prefix as tokens, so that a text's own came N places
later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from learner.errors import TuningUnsupported
from learner.extras import needed_by
from learner.passes.forward import Passes
from learner.passes.key_value_prefixes import NAME, prefixes_of
from learner.passes.pooling import Pool
from learner.tuning import key_value_prefixes
from learner.tuning.full import FullTuning
from learner.tuning.top_layers import TopLayersTuning, layers_of

LORA, IA3, PREFIX = "lora", "ia3", "prefix"
_SETTING = re.compile(r"(lora|ia3|prefix)(?::([1-9]\d*))?(?:@top:([1-9]\d*))?")
_LEAST_SIZE: Mapping[str, int | None] = {LORA: 2, IA3: None, PREFIX: 1}
_MOST_POSITIONS = 4096  # of a prefix: each text's attention sees them all
_OF_PEFT = re.compile(r"\.(lora_A|lora_B|ia3_l)\.default\b")
_OWN = re.compile(rf"{_OF_PEFT.pattern}|\.{NAME}\.(keys|values)$")
_ON_DISK = "base_model.model."

# Families that peft's own tables leave out: linear maps of queries and values, or of keys, values
# and what enters an output layer, which comes last
_LORA = {"distilbert": ["q_lin", "v_lin"], "mpnet": ["q", "v"]}
_IA3 = {
    "distilbert": ["k_lin", "v_lin", "lin2"],
    "mpnet": ["k", "v", "output.dense"],
    "electra": ["key", "value", "output.dense"],
    "xlm-roberta": ["key", "value", "output.dense"],
}


class Recipe(NamedTuple):
    """What a setting says of an adapter.

    Attributes:
        name: the setting.
        kind: ``lora``, ``ia3`` or ``prefix``.
        size: rank of LoRA, positions of a prefix; None: IA3.
        num_layers: last layers that have it; None: all.
    """

    name: str
    kind: str
    size: int | None
    num_layers: int | None

    @property
    def needs_peft(self) -> bool:
        """Whether it is one of peft's."""
        return self.kind != PREFIX

    @property
    def merges(self) -> bool:
        """Whether the encoder's own tensors can hold it."""
        return self.kind != PREFIX


def recipe(name: str) -> Recipe | None:
    """Return the adapter that a setting names, None if it names none.

    >>> recipe("lora:8@top:2")
    Recipe(name='lora:8@top:2', kind='lora', size=8, num_layers=2)
    """
    found = _SETTING.fullmatch(name)
    if found is None:
        return None
    kind = found[1]
    size, num_layers = (int(group) if group else None for group in found.groups()[1:])
    least = _LEAST_SIZE[kind]
    if (size is None) != (least is None) or (size or 0) < (least or 0):
        return None
    return Recipe(name, kind, size, num_layers)


def add(model: Any, wanted: Recipe, *, seed: int = 0) -> None:
    """Add an adapter to an encoder in place, if it has none yet.

    Args:
        model: an encoder.
        wanted: which adapter.
        seed: of the first values of LoRA; prefixes are zeros until they have theirs.

    Raises:
        TuningUnsupported: peft is needed and not installed, the encoder's family is not known, or
            the adapter is larger than any encoder can use.
    """
    if has_adapter(model):
        return
    most = _MOST_POSITIONS if wanted.kind == PREFIX else int(model.config.hidden_size)
    if wanted.size is not None and wanted.size > most:
        what = "positions" if wanted.kind == PREFIX else "as rank, the width of the encoder"
        raise TuningUnsupported(
            f"learner.tuning: got {wanted.name}, expected at most {most} {what}"
        )
    if wanted.kind == PREFIX:
        _add_prefixes(model, wanted)
    else:
        _add_by_peft(model, wanted, seed)


def _add_prefixes(model: Any, wanted: Recipe) -> None:
    path, layers = layers_of(model)
    number = len(layers) if wanted.num_layers is None else wanted.num_layers
    paths = [f"{path}.{place}" for place in range(len(layers) - number, len(layers))]
    assert wanted.size
    key_value_prefixes.add(model, wanted.name, wanted.size, paths)


def _add_by_peft(model: Any, wanted: Recipe, seed: int) -> None:
    with needed_by(f"learner.tuning: {wanted.name}", TuningUnsupported):
        import peft
    tables: Any = peft.utils
    known: dict[str, list[str]]
    if wanted.kind == LORA:
        known = tables.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING | _LORA
    else:
        known = tables.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING | _IA3
    targets = _targets(model, wanted, known)
    # GPT-2 stores its linear maps the other way round
    transposed = {type(model.get_submodule(name)).__name__ for name in targets} == {"Conv1D"}
    config: Any
    if wanted.kind == LORA:
        assert wanted.size
        config = peft.LoraConfig(
            r=wanted.size,
            lora_alpha=2 * wanted.size,
            target_modules=targets,
            fan_in_fan_out=transposed,
        )
    else:
        output = known[model.config.model_type][-1]
        config = peft.IA3Config(
            target_modules=targets,
            feedforward_modules=[name for name in targets if _ends_with(name, [output])],
            fan_in_fan_out=transposed,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)


def _targets(model: Any, wanted: Recipe, known: Mapping[str, list[str]]) -> list[str]:
    """Return the names of the linear maps that an adapter is added to."""
    family = model.config.model_type
    if family not in known:
        others = sorted({"bert", "roberta", "deberta", *_LORA})
        raise TuningUnsupported(
            f"learner.tuning: {wanted.name}: neither peft nor Steelyard knows the layers of "
            f"{type(model).__name__} ({family}), but those of {', '.join(others)} and others; "
            "use full, frozen or top:N"
        )
    names = [name for name, _ in model.named_modules() if _ends_with(name, known[family])]
    if wanted.num_layers is None:
        return names
    path, layers = layers_of(model)
    return [name for name in names if _layer(name, path) >= len(layers) - wanted.num_layers]


def _ends_with(name: str, ends: list[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _layer(name: str, path: str) -> int:
    """Return the number of the layer that a name is in, -1 if it is in none."""
    found = re.match(rf"{re.escape(path)}\.(\d+)\.", name)
    return int(found[1]) if found else -1


def has_adapter(model: Any) -> bool:
    """Return whether an adapter was added to an encoder."""
    return bool(getattr(model, "peft_config", None) or prefixes_of(model))


def _parameters(model: Any) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if _OWN.search(name)]


def _begin(model: Any, wanted: Recipe, passes: Passes, seed: int) -> None:
    """Add an adapter with its first values, if the encoder has none yet."""
    new = not has_adapter(model)
    add(model, wanted, seed=seed)
    if wanted.kind == PREFIX:
        key_value_prefixes.check_passes(model, wanted.name, passes)
        if new:
            key_value_prefixes.start(model, passes, seed=seed)


class AdapterTuning(FullTuning):
    """An adapter in every layer; the prefix of a text is its token ids."""

    def __init__(
        self, model: Any, pool: Pool, passes: Passes, wanted: Recipe, *, seed: int = 0
    ) -> None:
        """Add the adapter, if the encoder has none yet.

        Raises:
            TuningUnsupported: peft is not installed, the encoder's family is not known, or its
                passes cannot have the adapter.
        """
        _begin(model, wanted, passes, seed)
        super().__init__(model, pool, passes)
        self.name = wanted.name

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the adapter's parameters."""
        return _parameters(self._model)


class TopAdapterTuning(TopLayersTuning):
    """An adapter in the last N layers; the prefix of a text is its hidden states below them."""

    def __init__(
        self, model: Any, pool: Pool, passes: Passes, wanted: Recipe, *, seed: int = 0
    ) -> None:
        """Add the adapter, if the encoder has none yet.

        Raises:
            TuningUnsupported: the layers cannot be reached one by one, or there are fewer; and as
                of `AdapterTuning`.
        """
        assert wanted.num_layers
        super().__init__(model, pool, passes, wanted.num_layers, name=wanted.name)
        _begin(model, wanted, passes, seed)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the adapter's parameters."""
        return _parameters(self._model)


def name_on_disk(name: str) -> str:
    """Return the name of an encoder's parameter in files of transformers and of peft.

    >>> name_on_disk("encoder.layer.0.attention.self.query.base_layer.weight")
    'encoder.layer.0.attention.self.query.weight'
    >>> name_on_disk("encoder.layer.0.attention.self.query.lora_A.default.weight")
    'base_model.model.encoder.layer.0.attention.self.query.lora_A.weight'
    """
    if _OF_PEFT.search(name):
        return _ON_DISK + _OF_PEFT.sub(r".\1", name)
    return name.replace(".base_layer.", ".")


def load(
    model: Any, tensors: Mapping[str, Tensor], *, assign: bool = False, others: bool = False
) -> None:
    """Load the tensors of files into an encoder.

    Args:
        model: with its adapter, if it has one.
        tensors: by their names on disk.
        assign: make them the parameters, instead of copying their values.
        others: whether the encoder may have parameters beside them, which stay.
    """
    names = {name_on_disk(name): name for name in model.state_dict()}
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    model.load_state_dict(renamed, assign=assign, strict=not others)


@torch.no_grad()
def merged(model: Any) -> dict[str, Tensor]:
    """Add an adapter to the encoder's own tensors, for good; return them by their names on disk.

    Prefixes cannot be added.
    """
    assert not prefixes_of(model)
    for module in model.modules():
        if callable(merge := getattr(module, "merge", None)):
            merge()
    own = model.state_dict()
    return {name_on_disk(name): tensor for name, tensor in own.items() if not _OWN.search(name)}


def is_prefix(config: bytes) -> bool:
    """Return whether `config_file` wrote a configuration for prefixes."""
    try:
        written = msgspec.json.decode(config)
    except msgspec.DecodeError:
        return False
    return isinstance(written, dict) and written.get("peft_type") == key_value_prefixes.KIND


def config_file(model: Any, *, base: str) -> bytes:
    """Encode an adapter's configuration, as peft reads it, or refuses it where it has no such kind.

    Args:
        model: an encoder that has an adapter.
        base: sha256 of the file with the encoder's own parameters.
    """
    plain: dict[str, Any]
    if prefixes := prefixes_of(model):
        plain = {
            "peft_type": key_value_prefixes.KIND,
            "num_positions": prefixes[0].keys.shape[1],
            "num_layers": len(prefixes),
        }
    else:
        config = model.peft_config["default"].to_dict()
        plain = {
            key: sorted(each) if isinstance(each, set) else each for key, each in config.items()
        }
    plain |= {"base_model_name_or_path": f"sha256:{base}", "inference_mode": True}
    return msgspec.json.encode(plain, order="sorted")
