r"""Patterns in Rust's dialect: what ECMA-262 does not match is not written, and what it means otherwise is refused."""

import json
import re

import jsonschema_rs
import pytest

from zopilot_gpu.engine.grammar import Compiler
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.patterns import FORMATS, Unsupported, to_ascii
from zopilot_gpu.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(Tokenizer(locate("demo").directory).serialised(), 1024, [2])


def writes(compiler: Compiler, pattern: str, text: str) -> bool:
    """Whether the grammar of `pattern` can write `text`."""
    grammar = compiler.compile(json.dumps({"type": "string", "pattern": to_ascii(pattern)}))
    matcher = grammar.matcher
    return (
        all(map(matcher.consume_token, compiler._tokenizer.tokenize_str(json.dumps(text, ensure_ascii=False))))
        and matcher.is_accepting()
    )


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (r"^\d$", "09", "٣²a"),
        (r"^\w$", "aZ_0", "éſ-"),
        (r"^\s$", " \t\n", "\u00a0\u2028x"),
        (r"^\D$", "a-é", "0٣"),
        (r"^\W$", "- €", "a_é²ſ"),
        (r"^\S$", "aé", " \u00a0\ufeff\u2028"),
        (r"^.$", "aé\U0001f600\t", "\n\r\u2028\u2029"),
        (r"^[^\d]$", "aé", "0٣"),
        (r"^[^\s\w]$", "-€", " \u00a0aé"),
        (r"^[^\D]$", "07", "٣a"),
        (r"^[^\S]$", " \t", "\u00a0a"),
        (r"^[\D]$", "a-", "0٣"),
        (r"^[\w.-]$", "a.-", "`é"),
        (r"^[\w-z]$", "a-z", "`{"),
        (r"^[a&&b]$", "a&b", "c"),
        (r"^[a~~b]$", "a~b", "c"),
        (r"^[+--b]$", "+,-b", "*.a"),
        (r"^[[:alpha:]$", "[:alph", "bz"),
        (r"^[a-c-e]$", "abc-e", "d"),
        (r"^[\]\\\-.]$", r"]\-.", "a"),
        (r"^[.]$", ".", "a"),
        (r"^[\@\"\_]$", '@"_', "a"),
        (r"^\u0041|\x42|\u{43}$", "ABC", "D"),
        (r"^\p{Lu}$", "AÉ", "aé"),
    ],
)
def test_a_pattern_writes_what_ecma_262_matches_and_nothing_else(
    compiler: Compiler, pattern: str, matching: str, others: str
) -> None:
    assert [text for text in matching if not writes(compiler, pattern, text)] == []
    assert [text for text in others if writes(compiler, pattern, text)] == []


@pytest.mark.parametrize(
    "pattern",
    [r"\z", r"\A", r"\b", r"\pL", r"\a", r"\1", r"\cA", "(?i)a", "(?P<n>a)", "(?=a)", "(?<!a)", "a*+", "a{2}{3}", "a**", "a???",
     "[]a]", "[^]", "\\"],
)  # fmt: skip
def test_what_has_no_form_that_means_the_same_is_refused(pattern: str) -> None:
    with pytest.raises(Unsupported, match="pattern"):
        to_ascii(pattern)


@pytest.mark.parametrize("pattern", ["^[a-z]{2,3}$", "a|b", "(?:x)(y)(?<z>z)", "a*?b+?c??d{2}?", r"\/\.\*", "[!-/]", "", "^ü$"])
def test_what_both_dialects_read_alike_stays_or_loses_needless_escapes(pattern: str) -> None:
    assert to_ascii(pattern).replace("/", r"\/") == pattern.replace(r"\/", "/").replace("/", r"\/")


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("date", ["2024-02-29", "2000-02-29", "2023-12-31"],
         ["2023-02-29", "1900-02-29", "2100-02-29", "2023-04-31", "2023-13-01", "2023-00-10"]),
        ("time", ["23:59:59Z", "00:00:00.123+14:00"], ["24:00:00Z", "23:60:00Z", "23:59:60Z", "12:00:00", "12:00Z"]),
        ("date-time", ["2024-02-29T00:00:00Z"], ["2024-02-30T00:00:00Z", "2024-02-29 00:00:00Z"]),
        ("email", ["a@b.de", "a.b+c@x-y.example.org"], ["a@b", "@b.de", "a..b@c.de", ".a@b.de", "a@-b.de"]),
        ("hostname", ["a", "a-b.c9"], ["-a", "a-", "a..b", "a_b", "x" * 64]),
    ],
)  # fmt: skip
def test_formats_are_within_their_standards(name: str, valid: list[str], invalid: list[str]) -> None:
    judge = jsonschema_rs.Draft202012Validator({"format": name}, validate_formats=True)
    assert all(re.search(FORMATS[name], text) and judge.is_valid(text) for text in valid)
    assert not [text for text in invalid if re.search(FORMATS[name], text)]


def test_every_day_of_some_years_is_a_date_or_not() -> None:
    judge = jsonschema_rs.Draft202012Validator({"format": "date"}, validate_formats=True)
    days = [
        f"{year}-{month:02}-{day:02}"
        for year in (1000, 1900, 1999, 2000, 2023, 2024, 2100, 2400, 2999)
        for month in range(14)
        for day in range(33)
    ]
    wrong = [day for day in days if bool(re.search(FORMATS["date"], day)) != judge.is_valid(day)]
    assert wrong == []
