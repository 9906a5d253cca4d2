r"""Regular expressions as JSON Schema means them, in the dialect of the grammar's library. Knows two dialects; no schemas.

JSON Schema's are ECMA-262's: `\d` and `\w` are ASCII, `.` is no line break of any kind. The library's are those of Rust's
regex crate, where they are Unicode's. What is asked for becomes the narrower of all readings, what is excluded the wider, so
that no validator finds fault; what ECMA-262 has not, or reads in another way, is refused.

Formats are narrower here than their RFCs: what is written passes everywhere.
"""

import re

_NARROW = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r\f\v"}
# NOTE: not \d and \w, which the library reads as ASCII.
_WIDE = {"d": r"\p{Nd}", "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}", "s": r"\s\x1C-\x1F\uFEFF"}
_NO_LINE_BREAK = r"[^\n\r\u2028\u2029]"
_ESCAPE = r"\\(?:[!-/:-@\[-`{-~tnvfr]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]+\})"
_PIECE = re.compile(
    rf"(?P<kin>\\[dDwWsS])|(?P<escape>{_ESCAPE}|\\[pP]\{{[A-Za-z_=]+\}})|(?P<unknown>\\.?)"
    r"|\[(?P<excluded>\^?)(?P<members>(?:\\.|[^\]\\])*)\]|(?P<repetition>[*+?]|\{[0-9]+(?:,[0-9]*)?\})"
    r"|(?P<group>\((?:\?(?::|<\w+>))?)|(?P<plain>.)",
    re.DOTALL,
)
_MEMBER = re.compile(
    rf"(?P<kin>\\[dDwWsS])(?P<hyphen>-?)|(?P<first>{_ESCAPE}|[^\\])-(?P<last>{_ESCAPE}|[^\\])"
    rf"|(?P<escape>{_ESCAPE}|\\[pP]\{{[A-Za-z_=]+\}})|(?P<unknown>\\.?)|(?P<plain>.)",
    re.DOTALL,
)

_YEAR, _LEAP_YEAR = "[12][0-9]{3}", "(?:[12][0-9](?:0[48]|[2468][048]|[13579][26])|(?:12|16|20|24|28)00)"
_LONG, _SHORT, _FEBRUARY = (
    "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
    "02-(?:0[1-9]|1[0-9]|2[0-8])",
)
_DATE = f"(?:{_YEAR}-(?:{_LONG}|{_SHORT}|{_FEBRUARY})|{_LEAP_YEAR}-02-29)"
_HOUR_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR_MINUTE})"
_LABEL = "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20}){0,2}"  # at most 63 characters

FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "email": rf"^[A-Za-z0-9_+-]{{1,32}}(?:\.[A-Za-z0-9_+-]{{1,31}})?@(?:{_LABEL}\.){{1,2}}[A-Za-z]{{2,20}}$",
    "hostname": rf"^{_LABEL}(?:\.{_LABEL}){{0,2}}$",
}
KEPT_FORMATS = frozenset({"duration", "ipv4", "ipv6", "uri", "uuid"})  # the library's own reading of them is right


class Unsupported(ValueError):
    """What is asked for can't be promised; the text says why."""


def to_ascii(pattern: str) -> str:
    """`pattern`, an ECMA-262 regular expression, matching nothing more in Rust's dialect than in its own.

    Raises:
        Unsupported: the dialects differ in a way that has no other form.
    """
    pieces: list[str] = []
    num_repetitions = 0
    for found in _PIECE.finditer(pattern):
        kind, text = str(found.lastgroup), found.group()
        num_repetitions = num_repetitions + 1 if kind == "repetition" else 0
        if num_repetitions > 2 or (num_repetitions == 2 and text != "?"):
            raise Unsupported("the pattern repeats a repetition")
        if kind == "group" and text == "(" and pattern[found.end() : found.end() + 1] == "?":
            raise Unsupported("the pattern has a group that is neither plain nor named")
        if kind == "unknown":
            raise Unsupported(f"the pattern's {text} is not understood")
        if kind == "kin":
            text = f"[{_kin(text[1], excluded=False)}]"
        elif kind == "members":
            text = _class(found["members"], excluded=bool(found["excluded"]))
        elif text == ".":
            text = _NO_LINE_BREAK
        elif kind == "escape":
            text = _plain(text)
        pieces.append(text)
    return "".join(pieces)


def _class(members: str, *, excluded: bool) -> str:
    if not members:
        raise Unsupported("the pattern has an empty class")
    pieces: list[str] = []
    for found in _MEMBER.finditer(members):
        if found["unknown"]:
            raise Unsupported(f"the pattern's {found['unknown']} is not understood")
        if found["kin"]:
            pieces.append(_kin(found["kin"][1], excluded=excluded) + _plain(found["hyphen"]))
        elif found["first"]:
            pieces.append(f"{_plain(found['first'])}-{_plain(found['last'])}")
        else:
            pieces.append(_plain(found.group()))
    return f"[{'^' if excluded else ''}{''.join(pieces)}]"


def _kin(letter: str, *, excluded: bool) -> str:
    r"""The members that `\d` and its kin, or `\D` and its kin, add to a class."""
    if letter.islower():
        return (_WIDE if excluded else _NARROW)[letter]
    return f"[^{(_NARROW if excluded else _WIDE)[letter.lower()]}]"


def _plain(character: str) -> str:
    r"""One that needs no escape for Rust, which refuses some; or escaped where it would be an operation in a class."""
    if character[:1] == "\\" and character[1:] in set("!\"#%',/:;<=>@_`"):
        return character[1:]
    return f"\\{character}" if character in {"[", "&", "~", "-"} else character
