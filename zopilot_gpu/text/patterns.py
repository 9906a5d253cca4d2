r"""Regular expressions as JSON Schema means them, in the dialect of the grammar's library. Knows two dialects; no schemas.

JSON Schema's are ECMA-262's: `\d` and `\w` are ASCII, `.` is no line break of any kind. The library's are those of Rust's
regex crate, where they are Unicode's. Formats are narrower here than their RFCs: what is written passes everywhere.
"""

_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r\f\v"}
_NO_LINE_BREAK = r"[^\n\r\u2028\u2029]"

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


def to_ascii(pattern: str) -> str:
    """`pattern`, an ECMA-262 regular expression, matching nothing more in Rust's dialect than in its own."""
    pieces: list[str] = []
    in_class = False
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            escaped = next(characters, "")
            known = _CLASSES.get(escaped)
            pieces.append(f"\\{escaped}" if known is None else known if in_class else f"[{known}]")
            continue
        if character == "." and not in_class:
            pieces.append(_NO_LINE_BREAK)
            continue
        if character == "[" and in_class:
            pieces.append("\\")  # a plain character there; Rust would nest
        in_class = character != "]" if in_class else character == "["
        pieces.append(character)
    return "".join(pieces)
