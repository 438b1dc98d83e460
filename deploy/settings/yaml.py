"""YAML without its traps: `NO` is a text, `0123` is 123, `2e-5` is a number, `12:30` is a text, and a duplicate key is an error.

That is the core schema of YAML 1.2.2 (section 10.3.2, without octal and hexadecimal numbers); only plain values are built.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml


class _Loader(yaml.SafeLoader):
    """Collects duplicate keys instead of taking the last."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                self.duplicates.append(
                    f"line {key.start_mark.line + 1}: {key.value}: the key is there twice; keep one of them"
                )
            elif isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=True)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse(text: str) -> tuple[Any, list[str]]:
    """Return the value of a document (None where it is empty or broken), and everything that is wrong with its form, with line numbers."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        return None, [" ".join(str(error).split())]
    try:
        return loader.get_single_data(), loader.duplicates
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return None, [f"line {mark.line + 1 if mark else 1}: {error.problem or error.context}"]
    except (ValueError, RecursionError) as error:
        return None, [str(error)]
    finally:
        loader.dispose()
