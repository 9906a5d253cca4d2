"""Hand-written questions with words and values that the made-up documents never hold; reported apart.

The first two are the README's. `tests/unit/demo/test_model.py` checks that the generator has neither the field names nor
the words of the strange ones.

Try it: `python -m zopilot_gpu.demo.measure --questions 0`.
"""

import json
from typing import Any

from zopilot_gpu.demo.questions import INTRODUCTION, NOT_FOUND, Question

_ACME = {"vendor": "Acme", "invoice_number": "INV-1042", "total": "118.40", "currency": "EUR", "due_date": "2026-12-01"}
_FERRY = {
    "ferryOperator": "Hebridean Lighthouse Charters", "cabinClass": "Deluxe Berth", "passengerNames": ["Ingrid", "Bartholomew"],
    "luggageAllowance": "23 kg", "crossingFare": "GBP 284.15", "refundable": False, "departurePier": "Oban",
}  # fmt: skip
_TELESCOPE = {
    "telescope_aperture": 254, "observatory": "Mauna Kea", "astronomer": "Vesna Jovanović", "exposure_seconds": 1800.5,
    "target_galaxy": "NGC-4565", "clouded_out": True, "sponsor": None, "logged_on": "2031-08-17",
}  # fmt: skip
_BAKERY = {
    "Wholesale Bakery": "Crumb & Crust Ltd.", "Sourdough Loaves": 48, "Rye Surcharge": "12.75", "Grand Total": "361.95",
    "Payable Until": "14 February 2027", "VAT Number": "ATU67338912", "Hygiene Inspector": "Wolfgang Pichler",
}  # fmt: skip
_NESTED = {
    "landlord": {"name": "Ermintrude Cavendish", "iban": "GB29NWBK60161331926819"}, "monthly_rent": "1,450.00",
    "tenancy_begins": "2027-02-01", "furnished": True,
}  # fmt: skip
_CLAIM = {
    "policyholder": "Thaddeus Ó Súilleabháin", "claim_reference": "QX-77/31-Z", "windscreen_repair": "$418.09",
    "excess_waived": False, "garage_email": "reception@hammersmith-autoglass.example", "adjuster": "Ottoline", "mileage": 88213,
}  # fmt: skip


def _one(prompt: str, context: dict[str, Any], answer: str) -> Question:
    return Question("value", prompt, context, answer, ())


def _several(prompt: str, context: dict[str, Any], *keys: str) -> Question:
    return Question("several", prompt, context, json.dumps({key: context[key] for key in keys}, ensure_ascii=False), ())


CASES = (
    _one("What is the total?", _ACME, "118.40"),
    _several("Return the vendor, the total and the due date as JSON.", _ACME, "vendor", "total", "due_date"),
    _several("Return the vendor and the total as JSON.", _ACME, "vendor", "total"),
    _one("What is the invoice number?", _ACME, "INV-1042"),
    _one("Who is the vendor?", _ACME, "Acme"),
    _one("When is it due?", _ACME, "2026-12-01"),
    _one("currency", _ACME, "EUR"),
    _one("What is the total?", {"vendor": "Globex", "total": 9981.5, "subtotal": 8390.34}, "9981.5"),
    Question("all", "Return all fields as JSON.", _ACME, json.dumps(_ACME), ()),
    Question("missing", "What is the crossing fare?", _ACME, NOT_FOUND, ()),
    Question("plain", "What is the total?", None, INTRODUCTION, ()),
    Question("plain", "Hello, who are you?", None, INTRODUCTION, ()),
    _one("Who is the ferry operator?", _FERRY, "Hebridean Lighthouse Charters"),
    _one("what's the luggage allowance", _FERRY, "23 kg"),
    _one("Is it refundable?", _FERRY, "false"),
    _one("Give me the crossingFare.", _FERRY, "GBP 284.15"),
    _several("Extract cabin class and departure pier as JSON", _FERRY, "cabinClass", "departurePier"),
    _several("Return the passenger names, the crossing fare and the ferry operator as JSON.", _FERRY,
             "passengerNames", "crossingFare", "ferryOperator"),
    _one("What is the telescope aperture?", _TELESCOPE, "254"),
    _one("Which observatory?", _TELESCOPE, "Mauna Kea"),
    _one("Who is the astronomer?", _TELESCOPE, "Vesna Jovanović"),
    _one("Tell me the exposure seconds.", _TELESCOPE, "1800.5"),
    _one("clouded_out?", _TELESCOPE, "true"),
    _one("What is the sponsor?", _TELESCOPE, "null"),
    _several("Give me the target galaxy and the observatory as JSON.", _TELESCOPE, "target_galaxy", "observatory"),
    _one("How many sourdough loaves?", _BAKERY, "48"),
    _one("What is the grand total?", _BAKERY, "361.95"),
    _one("Tell me the hygiene inspector.", _BAKERY, "Wolfgang Pichler"),
    _one("What is the vat number?", _BAKERY, "ATU67338912"),
    _several("Return Rye Surcharge and Payable Until as JSON.", _BAKERY, "Rye Surcharge", "Payable Until"),
    _one("What is the monthly rent?", _NESTED, "1,450.00"),
    _one("What is the name of the landlord?", _NESTED, "Ermintrude Cavendish"),
    _one("What is the landlord iban?", _NESTED, "GB29NWBK60161331926819"),
    _one("Who is the policyholder?", _CLAIM, "Thaddeus Ó Súilleabháin"),
    _one("What is the claim reference?", _CLAIM, "QX-77/31-Z"),
    _one("Look up the garage email.", _CLAIM, "reception@hammersmith-autoglass.example"),
    _several("windscreen_repair, adjuster and mileage as json", _CLAIM, "windscreen_repair", "adjuster", "mileage"),
    Question("all", "Give me everything as JSON.", _CLAIM, json.dumps(_CLAIM, ensure_ascii=False), ()),
)  # fmt: skip
