"""Manifests as canonical JSON with a format version and a digest of their own.

A manifest is trusted only whole: the text is canonical, `self` is the sha256 of all the rest, every
path stays inside the version's own folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from learner.errors import Corrupt, FormatUnknown
from learner.store.manifest import (
    CHECKPOINT,
    FORMATS,
    KINDS,
    MAX_MANIFEST_BYTES,
    CheckpointMetadata,
    Manifest,
    canonical,
    check_path,
    folder_name,
    version_name,
    version_seq,
)
from weighting.provenance import Audit


def encode(manifest: Manifest) -> bytes:
    """Return the manifest with its `self`, canonical.

    Raises:
        ValueError: a field that `decode` would refuse, such as a number that is not finite.
    """
    fields = msgspec.to_builtins(manifest, str_keys=True)
    fields["audit"] = _each_audit(fields["audit"], _audit_to_object)
    fields |= fields.pop("run_state")
    if fields["fit"] is None:
        del fields["fit"]
    try:
        _convert(fields)
    except msgspec.ValidationError as error:
        raise ValueError(f"checkpoint: {error}") from error
    for key, value in fields.items():
        _check_canonical(key, value)
    data = canonical({**fields, "self": _digest(fields)})
    if len(data) > MAX_MANIFEST_BYTES:
        expected = f"expected at most {MAX_MANIFEST_BYTES}"
        raise ValueError(f"checkpoint: manifest: got {len(data)} bytes, {expected}")
    return data


def decode(data: bytes, *, where: str) -> tuple[Manifest, dict[str, Any]]:
    """Return a whole manifest, as a struct and as it is written.

    Args:
        data: the file.
        where: its path below the root, for errors.

    Raises:
        Corrupt: not canonical JSON, `self` does not hold, a field is missing or of another type,
            or a path leaves the version's folder.
        FormatUnknown: whole, but of a format or kind that we do not read.
    """
    raw = _parse(data, where)
    if raw.get("self") != (found := _digest(raw)):
        expected = f"self {raw.get('self')!r}"
        raise Corrupt(where, expected=expected, found=f"{found!r} over the rest")
    for key, known in (("format", FORMATS), ("kind", KINDS)):
        if (value := raw.get(key)) not in known:
            expected = f"one of {', '.join(map(str, known))}"
            raise FormatUnknown(where, key=key, expected=expected, found=repr(value))
    try:
        manifest = _convert(raw)
    except msgspec.ValidationError as error:
        raise Corrupt(where, expected="the fields of a manifest", found=str(error)) from error
    _check_names(manifest, where)
    return manifest, raw


def metadata(raw: Mapping[str, Any]) -> CheckpointMetadata:
    """Return the checkpoint metadata in a manifest that `decode` gave as it is written."""
    return msgspec.convert(_with_audits(raw), CheckpointMetadata, str_keys=True)


def _convert(fields: dict[str, Any]) -> Manifest:
    return msgspec.convert({**_with_audits(fields), "run_state": fields}, Manifest, str_keys=True)


def _with_audits(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with audits as `Audit` reads them; on disk they are objects."""
    try:
        return {**fields, "audit": _each_audit(fields.get("audit", {}), _audit_from_object)}
    except (AttributeError, KeyError, TypeError):
        return dict(fields)  # not what `encode` writes: refused by the conversion that follows


def _each_audit(audit: Mapping[str, Any], change: Callable[[Any], object]) -> dict[str, Any]:
    return {topic: {p: change(one) for p, one in parts.items()} for topic, parts in audit.items()}


def _audit_to_object(values: Sequence[object]) -> dict[str, object]:
    return dict(zip(Audit.__struct_fields__, values, strict=True))


def _audit_from_object(values: Mapping[str, object]) -> list[object]:
    return [values[name] for name in Audit.__struct_fields__]


def _parse(data: bytes, where: str) -> dict[str, Any]:
    expected = "a manifest in canonical JSON"
    try:
        raw = json.loads(data)
        whole = isinstance(raw, dict) and canonical(raw) == data
    except (ValueError, RecursionError) as error:
        found = f"{len(data)} bytes that are not"
        raise Corrupt(where, expected=expected, found=found) from error
    if not whole:
        raise Corrupt(where, expected=expected, found="JSON in another form")
    fields: dict[str, Any] = raw
    return fields


def _digest(fields: Mapping[str, Any]) -> str:
    """Return sha256 over all fields other than `self`."""
    rest = {key: value for key, value in fields.items() if key != "self"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def _check_canonical(key: str, value: object) -> None:
    try:
        canonical(value)
    except ValueError as error:
        raise ValueError(
            f"checkpoint: {key}: got {value!r}, "
            "expected finite numbers and Unicode text; leave the key out"
        ) from error


def _check_names(manifest: Manifest, where: str) -> None:
    version, parent = manifest.version, manifest.parent
    kind, files = manifest.kind, manifest.files
    meant = version_name(manifest.seq)
    if version != meant:
        raise Corrupt(where, expected=f"version {meant}", found=repr(version))
    if parent is not None and version_seq(parent.version) is None:
        raise Corrupt(where, expected="a version's name as parent", found=repr(parent.version))
    if files and kind != CHECKPOINT:
        raise Corrupt(where, expected=f"a {kind} without files", found=f"{len(files)} files")
    folder = folder_name(manifest.epoch, manifest.seq)
    for path in files:
        wrong = check_path(path) or (None if path.startswith(f"{folder}/") else f"outside {folder}")
        if wrong:
            expected = "normalised paths inside the version's folder"
            raise Corrupt(where, expected=expected, found=f"{path!r}: {wrong}")
