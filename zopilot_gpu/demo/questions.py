"""Questions over made-up documents, with the one right answer each; and the rule that keeps some for measuring.

    kind      asks for                       answer
    value     one field                      118.40 · 42 · true · ["a", "b"] (what is no string: as JSON)
    nested    a field inside an object       the same
    several   two to six fields              {"vendor": "Acme", "total": "118.40"}, in the order asked, without the absent
    all       every field                    the context itself
    missing   a field that isn't there       not found
    plain     anything, without a context    one fixed sentence

The rule: a (field name, answer) pair whose sha256 falls in a fixed tenth is *held out*: training never asks for it,
measuring asks for nothing else. Refuses ambiguity: the words of a missing field are neither part of a name that is there
nor around one.

Try it: `python -c "from zopilot_gpu.demo.questions import held_out_set; print(next(held_out_set(1)))"`.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from zopilot_gpu.demo import documents, phrasing
from zopilot_gpu.demo.documents import Document, Field

NOT_FOUND = "not found"
INTRODUCTION = "I am the ZopilotGPU demo model. Send a context with fields, and I will answer questions about them."
MAX_FIELDS = 12

_SHARES = {"value": 58, "several": 26, "all": 7, "missing": 5, "plain": 4}
_MAX_TRIES = 300
_TAILS = ("amount", "name", "number", "date", "value", "field", "info")

# Questions that don't name the field, and the names beside which they would be ambiguous.
_UNNAMED: dict[str, tuple[str, str]] = {
    "due date": ("When is it due?|When is the payment due?|By when must it be paid?", "payment date"),
    "total": (
        "How much is it?|How much is it in total?|What does it cost?|How much do we owe?|How much do I have to pay?",
        "amount price balance fee gross net",
    ),
    "vendor": ("Who sold it?|Who sent this?|Who is it from?|Who issued it?", "supplier seller company merchant vendor"),
    "paid": ("Is it paid?|Has it been paid?|Was it paid?|Is this already paid?", "amount status"),
    "approved": ("Is it approved?|Has it been approved?|Was this approved?", "by status"),
    "urgent": ("Is it urgent?|Is this urgent?", "status"),
    "currency": ("In which currency?|Which currency is it in?|What currency is used?", "rate"),
    "payment method": ("How was it paid?|How is it paid?", "terms"),
    "quantity": ("How many are there?|How many?|How much of it?", "count parcels guests nights hours weight"),
    "employee": ("Whose expenses are these?|Who spent the money?", "manager payee by"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, its context, the answer, and the (field name, answer) pairs that it asks for."""

    kind: str
    prompt: str
    context: dict[str, Any] | None
    answer: str
    asked: tuple[tuple[str, str], ...]


def is_held_out(name: str, answer: str) -> bool:
    """Whether this pair belongs to the tenth that only measuring asks for."""
    digest = hashlib.sha256(f"{name}\n{answer}".encode()).digest()
    return int.from_bytes(digest[:8]) % 10 == 0


def as_text(value: Any) -> str:
    """A value as it is answered: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_json(fields: Mapping[str, Any]) -> str:
    """An object as it is answered: in the customs of `json.dumps`, letters unescaped."""
    return json.dumps(fields, ensure_ascii=False)


def _pair(field: Field) -> tuple[str, str]:
    return field.name, as_text(field.value)


def _settle(rng: random.Random, document: Document, chosen: set[str], *, held_out: bool) -> Document | None:
    """The document with fresh values where the rule asks for them; None where no value can satisfy it."""
    fields = []
    for field in document.fields:
        settled = field
        for _ in range(_MAX_TRIES):
            if field.name not in chosen or is_held_out(*_pair(settled)) == held_out:
                break
            settled = replace(field, value=documents.draw_value(rng, field.name))
        else:
            return None
        fields.append(settled)
    return replace(document, fields=tuple(fields))


def _meant(document: Document, name: str) -> list[str]:
    """The fields that `name` may mean: those whose words it all has, or that have all of its words."""
    asked = set(name.split(" "))
    there = ((field.name, set(field.name.split(" "))) for field in document.fields)
    return [other for other, parts in there if parts <= asked or asked <= parts]


def _loose(rng: random.Random, field: Field, document: Document) -> str:
    """A word of the field's name, or its name with a word more, where that can mean no other field."""
    longer = f"{document.kind} {field.name}", f"{field.name} {rng.choice(_TAILS)}"
    name = rng.choice((*field.name.split(" "), *longer))
    return name if _meant(document, name) == [field.name] else field.name


def _refer(rng: random.Random, field: Field, document: Document) -> str:
    """The field as a person calls it: its words, some of them, its key, or its words spelt in another way."""
    roll = rng.random()
    if rng.random() < 0.1:
        return _loose(rng, field, document)
    if len(field.path) > 1 and roll < 0.5:
        group, leaf = (key.replace("_", " ").replace("-", " ").lower() for key in field.path)
        group, leaf = (field.name.removesuffix(" " + leaf), leaf) if field.name.endswith(" " + leaf) else (group, field.name)
        return (
            rng.choice((f"{leaf} of the {group}", f"{group} {leaf}", f"{group}'s {leaf}"))
            if group != field.name
            else field.name
        )
    if roll < 0.72:
        return field.name
    return ".".join(field.path) if roll < 0.9 else documents.spell(field.name, documents.random_style(rng))


def _value(rng: random.Random, document: Document, *, held_out: bool) -> Question | None:
    chosen = rng.choice(document.fields)
    settled = _settle(rng, document, {chosen.name}, held_out=held_out)
    if settled is None:
        return None
    field = next(field for field in settled.fields if field.name == chosen.name)
    unnamed, rivals = _UNNAMED.get(field.name, ("", ""))
    others = {word for other in settled.fields if other.name != field.name for word in other.name.split(" ")}
    if unnamed and rng.random() < 0.35 and not others & set(rivals.split(" ")):
        prompt = rng.choice(unnamed.split("|"))
    else:
        prompt = phrasing.ask_one(rng, _refer(rng, field, settled), document.kind)
    kind = "value" if len(field.path) == 1 else "nested"
    return Question(kind, prompt, settled.context(), as_text(field.value), (_pair(field),))


def _several(rng: random.Random, document: Document, *, held_out: bool) -> Question | None:
    flat = [field.name for field in document.fields if len(field.path) == 1]
    if len(flat) < 2:
        return None
    chosen = rng.sample(flat, min(len(flat), rng.choice((2, 2, 3, 3, 4, 5, 6))))
    settled = _settle(rng, document, set(chosen), held_out=held_out)
    if settled is None:
        return None
    by_name = {field.name: field for field in settled.fields}
    picked = [by_name[name] for name in chosen]
    as_keys = rng.random() < 0.3
    names, asked = [field.path[0] if as_keys else field.name for field in picked], [_pair(field) for field in picked]
    absent = documents.any_name(rng)
    if rng.random() < 0.08 and not _meant(settled, absent) and is_held_out(absent, NOT_FOUND) == held_out:
        names.insert(rng.randint(0, len(names)), absent)
        asked.append((absent, NOT_FOUND))
    answer = as_json({field.path[0]: field.value for field in picked})
    return Question("several", phrasing.ask_several(rng, names), settled.context(), answer, tuple(asked))


def _all(rng: random.Random, document: Document, *, held_out: bool) -> Question | None:
    settled = _settle(rng, document, {field.name for field in document.fields}, held_out=held_out)
    if settled is None:
        return None
    context = settled.context()
    return Question("all", phrasing.ask_all(rng, document.kind), context, as_json(context), tuple(map(_pair, settled.fields)))


def _missing(rng: random.Random, document: Document, *, held_out: bool) -> Question | None:
    near = rng.choice(document.fields).name.split(" ")
    near[rng.randrange(len(near))] = documents.unknown_name(rng).split(" ")[0]
    name = rng.choice((documents.any_name(rng), documents.any_name(rng), " ".join(near)))
    if _meant(document, name) or is_held_out(name, NOT_FOUND) != held_out:
        return None
    spelt = name if rng.random() < 0.8 else documents.spell(name, documents.random_style(rng))
    prompt = phrasing.ask_one(rng, spelt, document.kind)
    return Question("missing", prompt, document.context(), NOT_FOUND, ((name, NOT_FOUND),))


def _plain(rng: random.Random, document: Document, *, held_out: bool) -> Question | None:
    asked = rng.choice(document.fields).name
    prompt = phrasing.chat(rng) if rng.random() < 0.5 else phrasing.ask_one(rng, asked, document.kind)
    if is_held_out(prompt, INTRODUCTION) != held_out:
        return None
    return Question("plain", prompt, None, INTRODUCTION, ((prompt, INTRODUCTION),))


_MAKERS = {"value": _value, "several": _several, "all": _all, "missing": _missing, "plain": _plain}


def draw(rng: random.Random, *, held_out: bool, max_fields: int = MAX_FIELDS) -> Question:
    """One question over a document of two to `max_fields` fields; at the full size one in ten has up to thirty.

    Args:
        rng: the only source of chance.
        held_out: ask only for pairs that training never asks for; otherwise never for one of them.
        max_fields: smaller while the model learns its first steps.
    """
    kind = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    while True:
        size = rng.randint(2, max_fields)
        if max_fields >= MAX_FIELDS and rng.random() < 0.1:
            size = rng.randint(MAX_FIELDS, 30)
        question = _MAKERS[kind](rng, documents.draw(rng, size), held_out=held_out)
        if question is not None:
            return question


def held_out_set(seed: int) -> Iterator[Question]:
    """The questions that measuring asks, without end: the same for the same seed."""
    rng = random.Random(f"held out {seed}")
    while True:
        yield draw(rng, held_out=True)
