"""What business documents hold: the fields of each kind, what makes their values, and the objects inside them.

Knows tables only. A field goes by its *name*: words in lower case.

Try it: `python -c "from zopilot_gpu.demo.fields import FIELDS; print(len(FIELDS))"`.
"""

from zopilot_gpu.demo import values
from zopilot_gpu.demo.values import Maker
from zopilot_gpu.demo.words import listed

_BY_MAKER: tuple[tuple[Maker, str], ...] = (
    (values.company, "vendor|vendor name|supplier|customer|client|buyer|seller|company|merchant|payee|carrier|bank"),
    (values.person, "customer name|payer|contact|contact person|employee|manager|approved by|driver|signed by"),
    (values.amount, "total|subtotal|total amount|net amount|gross amount|amount|amount due|amount paid|tax|vat|tax amount"),
    (values.amount, "discount|tip|balance|opening balance|closing balance|fee|shipping cost|unit price|price|salary"),
    (values.amount, "deposit|penalty|budget|change"),
    (values.currency, "currency"),
    (values.percentage, "tax rate|vat rate|interest rate|exchange rate|discount rate|commission"),
    (values.date, "date|invoice date|due date|order date|delivery date|issue date|start date|end date|payment date"),
    (values.date, "booking date|expiry date|signing date"),
    (values.time_of_day, "time|created at|arrival time"),
    (values.code, "invoice number|order number|purchase order|receipt number|customer number|contract number|reference"),
    (values.code, "tracking number|transaction id|project|account number|cost center|sku|id|batch number|vehicle|register"),
    (values.iban, "iban"),
    (values.bank_code, "bic"),
    (values.tax_id, "vat id|tax number"),
    (values.phone, "phone"),
    (values.email, "email"),
    (values.website, "website"),
    (values.address, "address|billing address|shipping address"),
    (values.street, "street"),
    (values.city, "city"),
    (values.country, "country"),
    (values.postcode, "postcode"),
    (values.truth, "paid|approved|urgent|reimbursable|recurring"),
    (values.quantity, "quantity|weight|hours|duration"),
    (values.count, "line count|page count|parcels|nights|guests"),
    (values.terms, "notice period|payment terms"),
    (values.method, "payment method|shipping method"),
    (values.status, "status"),
    (values.word, "category|department|unit|type|language"),
    (values.goods, "description|item|product|service|purpose"),
    (values.note, "note|comment|subject"),
    (values.some_list, "items|tags|lines"),
)
FIELDS: dict[str, Maker] = {name: maker for maker, names in _BY_MAKER for name in listed(names, "|")}

_SHARED = "date|total|currency|status|note|reference|email|phone|address|id|type|amount|tags|items|company|country|tax|city"
_OWN = {
    "invoice": "vendor|customer|invoice number|invoice date|due date|subtotal|tax amount|tax rate|net amount|gross amount|"
    "amount due|payment terms|vat id|iban|bic|purchase order|discount|billing address|paid|supplier|vat|vat rate|lines",
    "receipt": "merchant|receipt number|time|item|quantity|unit price|subtotal|tip|vat|payment method|register|change|price",
    "purchase order": "buyer|supplier|order number|order date|delivery date|product|quantity|unit price|unit|cost center|"
    "shipping method|shipping cost|shipping address|approved by|approved|budget|sku|total amount",
    "bank transaction": "transaction id|booking date|payee|payer|iban|bic|bank|balance|purpose|category|fee|"
    "account number|opening balance|closing balance|exchange rate|recurring|description",
    "expense report": "employee|department|manager|project|cost center|category|purpose|hours|nights|guests|"
    "reimbursable|approved|approved by|merchant|payment method|start date|end date|description",
    "contract": "contract number|client|seller|start date|end date|signing date|signed by|notice period|penalty|duration|"
    "service|salary|deposit|recurring|interest rate|contact person|language|subject",
    "delivery note": "carrier|tracking number|driver|vehicle|weight|parcels|delivery date|arrival time|order number|"
    "batch number|shipping address|urgent|item|quantity|signed by|customer name|line count",
    "quote": "customer name|contact|product|service|unit price|discount|discount rate|expiry date|issue date|"
    "total amount|quantity|vendor name|comment|commission|website|page count|created at",
    "customer record": "customer number|customer name|contact person|street|postcode|website|language|tax number|vat id|"
    "payment terms|discount rate|balance|manager|comment|created at|payment date|amount paid",
}
KINDS: dict[str, list[str]] = {kind: listed(f"{names}|{_SHARED}", "|") for kind, names in _OWN.items()}

# Objects inside a document, and the makers of those of their fields that stand in no document by themselves.
GROUPS: dict[str, list[str]] = {
    "vendor": ["name", "vat id", "address", "email", "iban", "country"],
    "customer": ["name", "number", "phone", "city", "address", "email"],
    "shipping": ["street", "city", "postcode", "country", "date", "cost"],
    "payment": ["method", "date", "amount", "reference", "status"],
    "bank": ["name", "iban", "bic", "city"],
    "project": ["name", "code", "manager", "budget"],
}
LEAVES: dict[str, Maker] = {
    "name": values.company,
    "number": values.code,
    "cost": values.amount,
    "method": values.method,
    "code": values.code,
}

# Last words of names that no document kind knows.
TAILS = listed("number id name date count code amount total rate type status size owner level")
