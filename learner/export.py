"""Export of a version's encoder: for sentence-transformers, ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from learner import version_layout as layout
from learner.artifact import Store, Version
from learner.encoder.kept_heads import all_heads
from learner.encoder.load import load_saved
from learner.encoder.tokens import Texts, load_tokenizer
from learner.errors import ModelUnsupported
from learner.finite import check_tensors
from learner.passes.pooling import POOLING_FLAGS, POOLINGS
from learner.store import blobs
from learner.tuning import adapters

ONNX = "model.onnx"
_MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
_PADDING = ("pad_token", "eos_token", "sep_token", "unk_token", "bos_token", "cls_token")
"""Special tokens that can stand behind a shorter text; attention never sees them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportedEncoder:
    """An encoder as files, and what of the version's score is not among them.

    Attributes:
        files: path inside the folder -> bytes.
        num_residuals: queries whose residual stays behind.
    """

    files: Mapping[str, bytes]
    num_residuals: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VersionEncoder:
    """The encoder of a version, whole and in single precision.

    Attributes:
        version: that it is of.
        settings: of the version's score.
        model: an adapter is merged into it.
        files: configuration and tokenizer, as the version has them.
        num_residuals: queries that have a residual beside it.
    """

    version: Version
    settings: layout.ScoringSettings
    model: Any
    files: Mapping[str, bytes]
    num_residuals: int


def export_encoder(
    store: Store,
    version: Version,
    *,
    onnx: bool = False,
    int8_texts: Sequence[str] = (),
) -> ExportedEncoder:
    """Return a version's encoder as files: for sentence-transformers, of ONNX or of OpenVINO.

    Their vectors are those of the whole encoder in single precision, with an adapter merged into
    its own tensors. What is served under ``top:N`` and ``frozen`` was rounded to half precision
    below the layers that move, and under ``bfloat16`` its products were.

    Args:
        store: where the version is.
        version: its digests are checked on the bytes that are used.
        onnx: write one graph, with pooling and normalisation inside, in place of the tensors.
        int8_texts: write that graph for OpenVINO, in int8 with scales fixed by these texts.

    Raises:
        Corrupt: a file is not what the manifest says, or a number of it is not finite.
        ModelUnsupported: the encoder has no vectors of single texts, or nothing to pad with; or
            it cannot be written as ONNX, for example as the extra is not installed.
    """
    encoder = read_encoder(store, version)
    return ExportedEncoder(
        files=encoder_files(encoder, onnx=onnx, int8_texts=int8_texts),
        num_residuals=encoder.num_residuals,
    )


def read_encoder(store: Store, version: Version) -> VersionEncoder:
    """Load a version's encoder; errors as of `export_encoder`."""
    store.verify(version)

    def read(path: str) -> bytes:
        return store.read(version, path)

    state = layout.read_scoring(read)
    settings = state.settings
    if settings.interaction != "bi_encoder":
        raise ModelUnsupported(
            f"{version.name}: its encoder reads query and item together ({settings.interaction}); "
            "expected a bi_encoder: only that has vectors of single texts to export"
        )
    adapter = adapters.recipe(settings.tuning)
    if adapter is not None and not adapter.merges:
        raise ModelUnsupported(
            f"{version.name}: its encoder was tuned with {settings.tuning}, keys and values beside "
            "those of a text, which no tensor of the encoder can hold; expected another tuning: "
            "only the base could be exported, which is not what is served"
        )
    model_files = layout.read_model_files(read)
    for file, tensors in model_files.items():
        check_tensors(f"{version.name}/{file}", tensors)
    with layout.reading(", ".join(model_files)):
        model = load_saved(version.path, layout.merged(model_files), tuning=settings.tuning)
    if adapters.has_adapter(model):
        model = load_saved(version.path, adapters.merged(model), tuning="full")
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    return VersionEncoder(
        version=version,
        settings=settings,
        model=model,
        files={name: read(name) for name in names},
        num_residuals=len(state.queries),
    )


def encoder_files(
    encoder: VersionEncoder,
    *,
    onnx: bool = False,
    int8_texts: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, bytes]:
    """Return an encoder as files of a folder; `notes` are lines of its card.

    Raises:
        ModelUnsupported: as of `export_encoder`.
    """
    version, settings, model = encoder.version, encoder.settings, encoder.model
    given = encoder.files
    files = {
        "config.json": _config(given["config.json"], model),
        "tokenizer.json": given["tokenizer.json"],
        "tokenizer_config.json": _tokenizer(version, given["tokenizer_config.json"], settings),
    }
    if onnx or int8_texts:
        from learner.engines.onnx_graph import onnx_graph

        pool, name = POOLINGS[settings.pooling], ONNX
        graph = onnx_graph(model, pool, max_tokens=settings.max_tokens)
        if int8_texts:
            from learner.engines.openvino_graph import WEIGHTS, int8_files

            tokens = Texts(load_tokenizer(version.path), max_tokens=settings.max_tokens)
            files |= int8_files(graph, [tokens.ids(text) for text in int8_texts])
            name = WEIGHTS
        else:
            files[name] = graph
    else:
        name = layout.MODEL
        files[name] = weights_file(model)
        files |= _modules(settings, width=int(model.config.hidden_size))
    files[layout.CARD] = _card(encoder, name, blobs.digest(files[name]), notes)
    return files


def weights_file(model: Any) -> bytes:
    """Return the parameters of a model as one file; heads that were taken out are zeros."""
    # Older releases of transformers refuse a file that does not say whose tensors it holds
    return blobs.tensors_to_bytes(all_heads(model), metadata={"format": "pt"})


def _config(written: bytes, model: Any) -> bytes:
    """Return the configuration, with the class that the tensors are of."""
    return _json({**msgspec.json.decode(written), "architectures": [type(model).__name__]})


def _tokenizer(version: Version, written: bytes, settings: layout.ScoringSettings) -> bytes:
    """Return the tokenizer's settings: what the encoder was given, and no more."""
    config: dict[str, Any] = msgspec.json.decode(written)
    padding = next((config[name] for name in _PADDING if name in config), None)
    if padding is None:
        raise ModelUnsupported(
            f"{version.name}: its tokenizer has no special token, so texts of different lengths "
            "could not be padded. Nothing was exported."
        )
    return _json(
        {
            **config,
            "pad_token": padding,
            "model_max_length": settings.max_tokens,
            "model_input_names": ["input_ids", "attention_mask"],
        }
    )


def _modules(settings: layout.ScoringSettings, *, width: int) -> dict[str, bytes]:
    """Return what sentence-transformers reads beside transformers, as all its releases do."""
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, (path, kind) in enumerate(_MODULES)
    ]
    flags = {flag: mode == settings.pooling for flag, mode in POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": width, **flags, "include_prompt": True}
    whole: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    return {
        "modules.json": _json(modules),
        "sentence_bert_config.json": _json(
            {"max_seq_length": settings.max_tokens, "do_lower_case": False}
        ),
        "config_sentence_transformers.json": _json(whole),
        "1_Pooling/config.json": _json(pooling),
        "2_Normalize/config.json": _json({}),
    }


def _card(encoder: VersionEncoder, model: str, digest: blobs.Digest, notes: Sequence[str]) -> bytes:
    """Return the model card: where the encoder is from, and what it is not."""
    version, settings = encoder.version, encoder.settings
    kinds = {layout.MODEL: "sentence-transformers", ONNX: "onnx"}
    library = kinds.get(model, "openvino")
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: sentence-similarity",
        f"tags: [{library}, feature-extraction]",
        "---",
        "",
        f"# Encoder of version {version.name}",
        "",
        "Texts to unit vectors, exported from a store of Steelyard. It is the encoder alone: "
        "query residuals, heads, estimators and the other parts of the served score are not in "
        "it, so a cosine of two vectors is not the score that the server gives.",
        "",
        f"- Version: `{version.name}`, {version.step:,} steps, {version.num_samples:,} samples",
        f"- sha256 of its manifest: `{version.manifest['self']}`",
        f"- sha256 of `{model}`: `{digest.sha256}`",
        f"- Pooling: {settings.pooling}, normalised; at most {settings.max_tokens} tokens",
        f"- Tuning: {settings.tuning}",
        *(f"- {note}" for note in notes),
    ]
    return ("\n".join(lines) + "\n").encode()


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"
