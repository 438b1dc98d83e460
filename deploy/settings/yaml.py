"""YAML without its traps: `NO` and `12:30` are texts.

That is the core schema of YAML 1.2.2 (section 10.3.2) without octal and hexadecimal numbers. Only
plain values are built, and a duplicate key is an error.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml


class _Loader(yaml.SafeLoader):
    """Loader that collects duplicate keys instead of taking the last."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in found:
                place = f"line {key.start_mark.line + 1}: {key.value}"
                self.duplicates.append(f"{place}: the key is there twice; keep one of them")
            found.add(key.value)
        return super().construct_mapping(node, deep=True)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan"

#: Type, its form, and the characters that it may begin with.
_RESOLVERS = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)
for _type, _pattern, _first in _RESOLVERS:
    _form = re.compile(f"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", _form, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse(text: str) -> tuple[Any, list[str]]:
    """Return the value of a document, and its errors with line numbers.

    The value is None where the document is empty or broken.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        return None, [" ".join(str(error).split())]
    try:
        return loader.get_single_data(), loader.duplicates
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        return None, [f"line {line}: {error.problem or error.context}"]
    except (ValueError, RecursionError) as error:
        return None, [str(error)]
    finally:
        loader.dispose()
