"""Model card of a tagger: what it was learned from, how good it is, and how to call it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from learner.tagging.entities import TagFigures

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]()<>#|!&~"})
_USE = """\
A word has the tag of its first token; `O` stands for words beyond the longest text.

```python
from transformers import AutoModelForTokenClassification, AutoTokenizer

model = AutoModelForTokenClassification.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
words = ["red", "running", "shoes"]
given = tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
best = model(**given).logits[0].argmax(-1).tolist()
tags = {}
for token, word in enumerate(given.word_ids()):
    if word is not None:
        tags.setdefault(word, model.config.id2label[best[token]])
```"""


def tag_card(
    tags: Sequence[str],
    *,
    facts: Mapping[str, str],
    prefixes: bool,
    parts: Mapping[str, TagFigures | None],
) -> bytes:
    """Return the card as Markdown; equal arguments give equal bytes.

    Args:
        tags: that it knows.
        facts: name -> what is said of its learning.
        prefixes: whether tags have prefixes; see `learner.tagging.entities`.
        parts: name of a part that was held back -> its figures, None where there is none.
    """
    counted = "B-, I- (E-, S-), as conlleval counts" if prefixes else "each run of one tag"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: token-classification",
        "tags: [token-classification]",
        "---",
        "",
        "# Tags of words",
        "",
        *(f"- {name}: {_text(value)}" for name, value in facts.items()),
        f"- Tags: {', '.join(_text(tag) for tag in tags)}",
        "",
        "## Use",
        "",
        _USE,
        "",
        "## Figures",
        "",
        f"Entities: {counted}. Words without a token are taken to be predicted as O.",
    ]
    for name, found in parts.items():
        if found is not None:
            lines += _part(name, found)
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _part(name: str, found: TagFigures) -> Iterator[str]:
    yield from ("", f"### {name}", "")
    yield f"{found.words:,} words, accuracy {found.accuracy:.4f}."
    yield from ("", "| type | entities | precision | recall | F1 |", "|---|---|---|---|---|")
    for title, own in {"all": found.entities, **found.by_type}.items():
        shares = f"{own.precision:.4f} | {own.recall:.4f} | {own.f1:.4f}"
        yield f"| {_text(title)} | {own.true:,} | {shares} |"


def _text(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return " ".join(text.split()).translate(_SPECIAL)
