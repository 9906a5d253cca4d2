"""Made-up business documents: fields drawn for a kind, and the ways in which people spell keys.

A field has a *name*, words in lower case (`invoice number`), whatever its key looks like in one document
(`invoice_number`, `invoiceNumber`, `Invoice Number`). Questions ask for names; documents hold keys.
Refuses two fields of one name in a document. No file is read: a document is a function of the generator it is given.

Try it: `python -c "import random; from zopilot_gpu.demo.documents import draw; print(draw(random.Random(1), 6).context())"`.
"""

import random
from dataclasses import dataclass
from typing import Any

from zopilot_gpu.demo import values, words
from zopilot_gpu.demo.fields import FIELDS, GROUPS, KINDS, LEAVES, TAILS
from zopilot_gpu.demo.values import Maker

_KINDS, _NAMES, _GROUPS = list(KINDS), list(FIELDS), list(GROUPS)


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that can be asked: its name in words, the key (or the path of keys) under which it lies, its value."""

    name: str
    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class Document:
    """A kind of document and its fields, in the order of their keys. A nested field's siblings follow one another."""

    kind: str
    fields: tuple[Field, ...]

    def context(self) -> dict[str, Any]:
        """The document as the JSON object that a caller sends."""
        context: dict[str, Any] = {}
        for field in self.fields:
            place = context
            for key in field.path[:-1]:
                place = place.setdefault(key, {})
            place[field.path[-1]] = field.value
        return context


def spell(name: str, style: int) -> str:
    """The key of a name: snake_case, camelCase, spaced, Title Case, kebab-case, UPPER_CASE or PascalCase (0 to 6)."""
    parts = name.split(" ")
    capital = [part.capitalize() for part in parts]
    spelt = (
        "_".join(parts), parts[0] + "".join(capital[1:]), name, " ".join(capital), "-".join(parts), "_".join(parts).upper(),
        "".join(capital),
    )  # fmt: skip
    return spelt[style]


def random_style(rng: random.Random) -> int:
    """A spelling, snake_case the most often."""
    return rng.choices(range(7), (50, 16, 10, 9, 5, 4, 6))[0]


def unknown_name(rng: random.Random) -> str:
    """A name of one to three words that no document kind has on purpose; sometimes shares a word with a known one."""
    parts = [words.any_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))]
    if rng.random() < 0.25:
        parts.append(rng.choice(TAILS))
    return " ".join(parts)


def draw_value(rng: random.Random, name: str) -> Any:
    """A fresh value for a field of this name."""
    roll = rng.random()
    if roll < 0.02:
        return None
    if roll < 0.05:
        return values.exotic(rng) if roll < 0.035 else values.awkward(rng)
    return _maker(name)(rng)


def _maker(name: str) -> Maker:
    """What makes the values of a name, or of the name without its first words (those of the group around it)."""
    parts = name.split(" ")
    tails = (" ".join(parts[i:]) for i in range(len(parts)))
    known = (FIELDS.get(tail) or LEAVES.get(tail) for tail in tails)
    return next((maker for maker in known if maker), values.anything)


def draw(rng: random.Random, num_fields: int) -> Document:
    """A document of `num_fields` names (a nested group counts as its leaves) in random order."""
    kind = rng.choice(_KINDS)
    if rng.random() < 0.04:
        return Document(kind, _numbered(rng, num_fields))
    strange = rng.choice((0.0, 0.0, 0.1, 0.5, 1.0))
    style = random_style(rng)
    fields: dict[str, list[Field]] = {}
    taken: set[str] = set()
    if num_fields >= 4 and rng.random() < 0.18:
        group, leaves = _group(rng, kind)
        paths = ((f"{group} {leaf}", (spell(group, style), spell(leaf, style))) for leaf in leaves)
        fields[group] = [Field(name, path, draw_value(rng, name)) for name, path in paths]
        taken = {field.name for field in fields[group]}
    while len(fields) + max(0, len(taken) - 1) < num_fields:
        name = unknown_name(rng) if rng.random() < strange else rng.choice(KINDS[kind] if rng.random() < 0.85 else _NAMES)
        if name not in fields and name not in taken:
            key = spell(name, style if rng.random() < 0.97 else random_style(rng))
            fields[name] = [Field(name, (key,), draw_value(rng, name))]
    order = list(fields.values())
    rng.shuffle(order)
    return Document(kind, tuple(field for group in order for field in group))


def _numbered(rng: random.Random, num_fields: int) -> tuple[Field, ...]:
    """Fields whose names differ by a number alone; so do their values, now and then."""
    stem, style, first = any_name(rng), random_style(rng), rng.randint(0, 2)
    said = words.any_word(rng) if rng.random() < 0.5 else ""
    return tuple(
        Field(f"{stem} {i}", (spell(f"{stem} {i}", style),), f"{said} {i}" if said else values.anything(rng))
        for i in range(first, first + num_fields)
    )


def any_name(rng: random.Random) -> str:
    """A name that some document kind knows, or one that none does."""
    return unknown_name(rng) if rng.random() < 0.5 else rng.choice(_NAMES)


def _group(rng: random.Random, kind: str) -> tuple[str, list[str]]:
    """The name of an object inside a document, and the names of its fields."""
    roll = rng.random()
    if roll < 0.4:
        group = rng.choice(_GROUPS)
        return group, rng.sample(GROUPS[group], rng.randint(2, 3))
    if roll < 0.6:
        return kind, rng.sample(KINDS[kind], rng.randint(2, 5))
    leaves = {any_name(rng) for _ in range(3)}
    return words.any_word(rng), sorted(leaves)
