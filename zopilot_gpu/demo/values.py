"""Made-up values: amounts, dates, codes, names, addresses, and the rest of what business documents hold.

Every maker takes a `random.Random` and returns something that JSON can carry. Only `awkward` makes strings that
read differently in JSON than on their own (quotes and line ends).

Try it: `python -c "import random; from zopilot_gpu.demo import values; print(values.anything(random.Random(1)))"`.
"""

import random
import string
from collections.abc import Callable
from typing import Any

from zopilot_gpu.demo import words

_METHODS = words.listed(
    "bank transfer|credit card|cash|direct debit|PayPal|cheque|Visa|SEPA|courier|truck|ship|air freight|post", "|"
)

Maker = Callable[[random.Random], Any]


def _digits(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choices(string.digits, k=rng.randint(low, high)))


def _capitals(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(low, high)))


def _name_word(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.6:
        return words.made_up(rng).capitalize()
    return words.any_word(rng).capitalize() if roll < 0.97 else words.foreign(rng)


def company(rng: random.Random) -> str:
    """`Acme`, `Brano Supplies`, `Weber & Sons`."""
    names = [_name_word(rng) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.2:
        names = [rng.choice(words.LAST_NAMES)]
    return " ".join([*names, rng.choice(words.SUFFIXES)] if rng.random() < 0.6 else names)


def person(rng: random.Random) -> str:
    """First and last name, sometimes a made-up one."""
    last = rng.choice(words.LAST_NAMES) if rng.random() < 0.5 else _name_word(rng)
    return f"{rng.choice(words.FIRST_NAMES)} {last}"


def number(rng: random.Random) -> int:
    """A whole number of one to six digits, or a round one of up to ten."""
    if rng.random() < 0.2:
        return int(rng.randrange(1, 100) * 10 ** rng.randint(1, 8))
    return rng.randrange(10 ** rng.randint(1, 6))


def amount(rng: random.Random) -> str | float | int:
    """Money as text in several customs, or as a JSON number."""
    cents = rng.randrange(10 ** rng.randint(2, 7)) if rng.random() < 0.88 else 100 * number(rng)
    money, currency = cents / 100, rng.choice(words.CURRENCIES)
    form = rng.randrange(5 + 9)
    if form < 5:
        return f"{money:.2f}"
    european = f"{money:,.2f}".translate(str.maketrans(",.", ".,"))
    others: tuple[str | float | int, ...] = (
        f"{money:,.2f}", round(money), money, money, f"{currency} {money:.2f}", f"{money:.2f} {currency}",
        f"${money:,.2f}", f"€{money:.2f}", european,
    )  # fmt: skip
    value = others[form - 5]
    if rng.random() < 0.05:
        return f"-{value}" if isinstance(value, str) else -value
    return value


def date(rng: random.Random) -> str:
    """A day in one of seven notations, mostly ISO 8601."""
    year, month, day = rng.randint(1995, 2034), rng.randint(1, 12), rng.randint(1, 28)
    name = words.MONTHS[month - 1]
    others = (
        f"{day:02}/{month:02}/{year}", f"{day:02}.{month:02}.{year}", f"{day} {name} {year}",
        f"{name} {day}, {year}", f"{name[:3]} {day}, {year}", f"{year}/{month:02}/{day:02}",
    )  # fmt: skip
    return f"{year}-{month:02}-{day:02}" if rng.random() < 0.6 else rng.choice(others)


def time_of_day(rng: random.Random) -> str:
    """`14:35`, `2:05 pm`, or a whole ISO timestamp."""
    hour, minute = rng.randrange(24), rng.randrange(60)
    stamp = f"{rng.randint(1995, 2034)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{hour:02}:{minute:02}:00Z"
    return rng.choice((f"{hour:02}:{minute:02}", f"{hour % 12 + 1}:{minute:02} {rng.choice(('am', 'pm'))}", stamp))


def repeated(rng: random.Random) -> str:
    """A reference in which characters repeat: `000012`, `AA-7777-1`."""
    runs = [rng.choice(string.digits + "0000" + "AXZ") * rng.randint(1, 6) for _ in range(rng.randint(1, 3))]
    return rng.choice(("", "", "-", " ")).join(runs) + rng.choice(("", _digits(rng, 1, 3)))


def code(rng: random.Random) -> str:
    """A reference: `INV-1042`, `PO/2025/00123`, `7f3a9c`, `#10432`."""
    prefix, year = _capitals(rng, 1, 4), rng.randint(2015, 2034)
    forms = (
        f"{prefix}-{_digits(rng, 2, 6)}", f"{prefix}{_digits(rng, 3, 8)}", f"{prefix}/{year}/{_digits(rng, 3, 5)}",
        f"{year}-{_digits(rng, 3, 6)}", f"#{_digits(rng, 3, 6)}", _digits(rng, 4, 12),
        f"{prefix}-{_digits(rng, 1, 3)}-{_capitals(rng, 1, 3)}", f"{prefix}_{_digits(rng, 2, 4)}.{_digits(rng, 1, 2)}",
        "".join(rng.choices("0123456789abcdef", k=rng.randint(6, 16))), f"{words.any_word(rng)}-{_digits(rng, 1, 4)}",
        "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(5, 10))), repeated(rng), repeated(rng),
    )  # fmt: skip
    return rng.choice(forms)


def iban(rng: random.Random) -> str:
    """A bank account number, together or in groups of four."""
    text = _capitals(rng, 2, 2) + _digits(rng, 2, 2) + _capitals(rng, 0, 4) + _digits(rng, 10, 16)
    return text if rng.random() < 0.5 else " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def bank_code(rng: random.Random) -> str:
    """A BIC-like code: eight or eleven capitals and digits."""
    return _capitals(rng, 6, 8) + rng.choice(("", "XXX", _digits(rng, 3, 3)))


def tax_id(rng: random.Random) -> str:
    """`DE123456789`, `12-3456789`."""
    return rng.choice((_capitals(rng, 2, 2) + _digits(rng, 8, 11), f"{_digits(rng, 2, 2)}-{_digits(rng, 7, 7)}"))


def phone(rng: random.Random) -> str:
    """`+49 30 1234567`, `(555) 123-4567`."""
    dashed = f"({_digits(rng, 3, 3)}) {_digits(rng, 3, 3)}-{_digits(rng, 4, 4)}"
    return rng.choice((f"+{_digits(rng, 1, 2)} {_digits(rng, 2, 3)} {_digits(rng, 5, 8)}", dashed))


def email(rng: random.Random) -> str:
    """An address at a made-up domain."""
    user = rng.choice((words.made_up(rng), f"{words.made_up(rng)}.{words.any_word(rng)}", "info", "billing", "office"))
    return f"{user}@{words.made_up(rng)}.{rng.choice(('com', 'org', 'net', 'eu', 'de', 'io', 'co.uk', 'example'))}"


def website(rng: random.Random) -> str:
    """A URL, short or with a path."""
    site = f"{rng.choice(('https://', 'https://www.', 'www.', ''))}{words.made_up(rng)}.{rng.choice(('com', 'org', 'eu'))}"
    return site + rng.choice(("", "/", f"/{words.any_word(rng)}", f"/{words.any_word(rng)}/{_digits(rng, 1, 4)}"))


def street(rng: random.Random) -> str:
    """House number and street, in either order."""
    house, kind = rng.randint(1, 400), rng.choice(("Street", "Road", "Avenue", "Lane", "Square"))
    name = rng.choice(words.STREETS) if rng.random() < 0.5 else _name_word(rng)
    return rng.choice((f"{house} {name} {kind}", f"{name} {kind} {house}", f"{name}weg {house}"))


def address(rng: random.Random) -> str:
    """Street, postcode and city."""
    return f"{street(rng)}, {_digits(rng, 4, 5)} {city(rng)}"


def city(rng: random.Random) -> str:
    """A known city or a made-up one."""
    return rng.choice(words.CITIES) if rng.random() < 0.5 else _name_word(rng)


def country(rng: random.Random) -> str:
    """Name or two-letter code."""
    return rng.choice(words.COUNTRIES)


def postcode(rng: random.Random) -> str:
    """`10115`, `SW1 4AB`."""
    british = f"{_capitals(rng, 1, 2)}{_digits(rng, 1, 2)} {_digits(rng, 1, 1)}{_capitals(rng, 2, 2)}"
    return rng.choice((_digits(rng, 4, 5), _digits(rng, 5, 5), british))


def currency(rng: random.Random) -> str:
    """A three-letter code."""
    return rng.choice(words.CURRENCIES)


def percentage(rng: random.Random) -> str | int | float:
    """`19%`, `7.5 %`, 19, 0.19."""
    whole, tenth = rng.randrange(1, 60), rng.randrange(10)
    return rng.choice((f"{whole}%", f"{whole}.{tenth}%", f"{whole} %", whole, whole / 100, f"{whole}.{tenth}"))


def truth(rng: random.Random) -> bool:
    """True or false."""
    return rng.random() < 0.5


def count(rng: random.Random) -> int:
    """A small whole number."""
    return rng.randrange(rng.choice((10, 100, 1000)))


def quantity(rng: random.Random) -> int | float | str:
    """A count, a measure, or a count with its unit."""
    return rng.choice((count(rng), count(rng), rng.randrange(1000) / 10, f"{count(rng)} {rng.choice(words.UNITS)}"))


def status(rng: random.Random) -> str:
    """One or two words of state."""
    word = rng.choice(words.STATUSES)
    return rng.choice((word, word, word.capitalize(), word.upper(), f"{word} {rng.choice(words.COMMON)}"))


def terms(rng: random.Random) -> str:
    """Payment terms."""
    days = rng.choice((7, 8, 10, 14, 15, 20, 21, 30, 45, 60, 90, rng.randint(1, 120)))
    discount = f"{rng.randint(1, 5)}% {rng.randint(5, 20)} days, net {days}"
    return rng.choice((f"Net {days}", f"{days} days", f"net {days} days", f"{days} days end of month", discount))


def method(rng: random.Random) -> str:
    """How something was paid or sent."""
    return rng.choice(_METHODS) if rng.random() < 0.7 else words.any_word(rng)


def goods(rng: random.Random) -> str:
    """What was bought: one to four words."""
    named = [rng.choice(words.GOODS) if rng.random() < 0.6 else words.any_word(rng) for _ in range(rng.randint(1, 3))]
    text = " ".join(named)
    return rng.choice((text, text.capitalize(), f"{rng.randint(2, 20)} x {text}", text.title()))


def note(rng: random.Random) -> str:
    """Free text of three to twelve words."""
    said = [words.any_word(rng) for _ in range(rng.choice((3, 4, 5, 6, 8, 12)))]
    if rng.random() < 0.4:
        said[rng.randrange(len(said))] += ","
    return " ".join(said).capitalize() + rng.choice(("", "."))


def word(rng: random.Random) -> str:
    """One word in any case."""
    made = words.any_word(rng) if rng.random() < 0.95 else words.foreign(rng)
    return rng.choice((made, made, made.capitalize(), made.upper()))


def exotic(rng: random.Random) -> str:
    """One to four words, most of them in other alphabets or of signs."""
    return " ".join(words.foreign(rng) if rng.random() < 0.7 else words.any_word(rng) for _ in range(rng.randint(1, 4)))


def awkward(rng: random.Random) -> str:
    """Words with what JSON escapes between or around them: quotes or line ends."""
    said = [words.any_word(rng).capitalize() if rng.random() < 0.5 else words.any_word(rng) for _ in range(rng.randint(2, 4))]
    at = rng.randrange(len(said))
    form = rng.randrange(4)
    if form < 2:
        said[at] = f'"{said[at]}"'
    return (" ", " ", "\n", "\n\n")[form].join(said)


_ANY: tuple[Maker, ...] = (
    amount, amount, code, code, company, person, number, count, date, word, word, goods, note, truth, status, city, phone,
    email, percentage, quantity, website, iban, address, time_of_day, tax_id, bank_code, currency, postcode, exotic,
)  # fmt: skip


def anything(rng: random.Random) -> Any:
    """A value of any kind, for keys that no document kind knows."""
    return rng.choice(_ANY)(rng)


def some_list(rng: random.Random) -> list[Any]:
    """A short list of words, goods or numbers, or of lines that are objects themselves."""
    length = rng.randint(1, 3)
    if rng.random() < 0.3:
        return [{"item": goods(rng), "quantity": count(rng), "price": amount(rng)} for _ in range(length)]
    maker = rng.choice((word, goods, count, code))
    return [maker(rng) for _ in range(length)]
