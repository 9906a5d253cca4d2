"""The many ways of asking: for one field, for several as JSON, for everything, and for nothing in particular.

Knows sentences; refuses to know values or answers. A field is handed in as the words or the key that name it.

Try it: `python -c "import random; from zopilot_gpu.demo.phrasing import ask_all; print(ask_all(random.Random(1), 'quote'))"`.
"""

import random

from zopilot_gpu.demo import words
from zopilot_gpu.demo.words import listed

_ONE = listed(
    "What is the {f}?|What is the {f}?|What is the {f}?|What's the {f}?|What was the {f}?|What is {f}?|What are the {f}?|"
    "Which {f}?|Which {f} is given?|Which {f} does it have?|What {f} is stated?|What {f} does the document show?|"
    "Tell me the {f}.|Give me the {f}.|Give me {f}.|Show me the {f}.|Show the {f}.|Find the {f}.|Find {f}.|"
    "Extract the {f}.|Extract {f}.|Read the {f}.|Read out the {f}.|Return the {f}.|Return {f}.|I need the {f}.|"
    "I want to know the {f}.|I am looking for the {f}.|Look up the {f}.|Get the {f}.|Get {f}.|State the {f}.|Name the {f}.|"
    "Print the {f}.|Copy the {f}.|Do you know the {f}?|Can you tell me the {f}?|Could you tell me the {f}?|"
    "Can you find the {f}?|Could you give me the {f}?|May I have the {f}?|{f}?|{f}|{f}|The {f}?|The {f}, please.|"
    "{f}, please.|{f}:|Value of {f}?|The value of {f}.|What is the value of {f}?|What is the value of the field {f}?|"
    "What value does {f} have?|What does it say about the {f}?|What does {f} say?|What do you find under {f}?|"
    "How much is the {f}?|How many {f}?|Who is the {f}?|When is the {f}?|Where is the {f}?|Is there a {f}?|"
    "What about the {f}?|And the {f}?|Now the {f}.|Check the {f}.|Tell us the {f}.|Let me know the {f}.|"
    "What would be the {f}?|Identify the {f}.|Provide the {f}.|Report the {f}.|Please provide the {f}.|"
    "Which one is the {f}?|"
    "What can you tell me about the {f}?|Answer with the {f}.|Output the {f}.|Fetch the {f}.|Determine the {f}.",
    "|",
)

_PLACE = listed(
    "of the {k}|in the {k}|on the {k}|of this {k}|in this {k}|on this {k}|from the {k}|for this {k}|in the document|"
    "of the document|in the context|from the context|here|given|of it",
    "|",
)

_BEFORE = listed(
    "Please: |Hi, |Hello! |Hello, |Question: |Quick question: |Hey, |Ok, |Good morning. |One question: |Task: |Now: ", "|"
)

_AFTER = listed(
    " Answer with the value only.| Just the value.| Only the value, please.| Be brief.| Thanks.| Thank you!| Keep it short.|"
    " Use the context.| No explanation.| Reply with one value.",
    "|",
)

_AFTER_JSON = listed(
    " JSON only.| Answer with JSON only.| No other text.| Thanks.| Only JSON, please.| Use the context.| No explanation.", "|"
)

_SEVERAL = listed(
    "Return {l} as JSON.|Return {l} as JSON.|Return {l} as a JSON object.|Return a JSON object with {l}.|"
    "Return JSON with {l}.|Extract {l} as JSON.|Extract {l} in JSON format.|Extract the following fields as JSON: {l}|"
    "Extract {l}.|Give me {l} as JSON.|Give me {l} in JSON.|Give me a JSON object with {l}.|Give me {l}.|JSON with {l}.|"
    "JSON: {l}|{l} as JSON|{l} as json, please|{l} -> json|Output {l} as JSON.|Write {l} as JSON.|Show {l} as JSON.|"
    "I need {l} as JSON.|I need {l}.|List {l} as JSON.|What are {l}?|What is {l}? Answer in JSON.|"
    "What are {l}? Reply with JSON.|Tell me {l}.|Find {l} and answer with JSON.|Respond with a JSON object that holds {l}.|"
    "Answer with a JSON object: {l}|Please return {l} in JSON format.|{l}?|{l}|Can you give me {l} as JSON?|"
    "Could you extract {l} as a JSON object?|Build a JSON object from {l}.|Pick {l} and return JSON.|"
    "Make JSON of {l}.|Fields: {l}. Format: JSON.|Return only {l} as JSON.|Get {l} as JSON.|Provide {l} as JSON.",
    "|",
)

_ALL = listed(
    "Return all fields as JSON.|Return everything as JSON.|Give me all fields as JSON.|All fields as JSON.|"
    "all fields as json|Give me everything as JSON.|Show me the whole document as JSON.|"
    "The whole document as JSON, please.|Return the context as JSON.|Repeat the context as JSON.|"
    "Output all the data as a JSON object.|Extract all fields as JSON.|Extract everything.|Write the whole {k} as JSON.|"
    "Convert the {k} to JSON.|Return the complete {k} as JSON.|Give me the full {k} in JSON.|"
    "List all fields and their values as JSON.|Return every field as JSON.|Print every field of the {k} as JSON.|"
    "Can you return all the fields as JSON?|I need all the data as JSON.|What are all the fields? Answer in JSON.|"
    "Copy the {k} as JSON.|"
    "Return all of it as JSON.|Everything as JSON",
    "|",
)

_CHAT = listed(
    "Hello|Hi|Hi there!|Hello, who are you?|Who are you?|What are you?|What can you do?|Help|Tell me a joke.|"
    "Tell me about {w}.|What is {w}?|Write a poem about {w}.|Write a letter about the {w}.|How are you?|Good morning!|"
    "Explain {w} to me.|test|Test prompt|Are you there?|What is the meaning of {w}?|Translate {w}.|Summarise the {w}.|"
    "Summarise this document.|ping|Say hello.|Say something.|Thanks!|Count to {n}.|What is {n} plus {n}?|Who is {w}?|"
    "Where is {w}?|Make a list of {w}.|Write {n} words about {w}.|Introduce yourself.|What model are you?|Write a story.|"
    "Write a short story about a {w} and a {w}.|Why is the {w} {w}?|{w}|{w} {w}",
    "|",
)


def _finish(rng: random.Random, text: str) -> str:
    if text[0].isupper() and text[1:2].islower() and rng.random() < 0.25:
        text = text[0].lower() + text[1:]
    if text[-1] in ".?" and rng.random() < 0.3:
        text = text[:-1]
    return text


def _dress(rng: random.Random, text: str, after: list[str]) -> str:
    """`text` with a greeting in front or an instruction behind, now and then."""
    text = _finish(rng, text)
    if rng.random() < 0.08:
        text = rng.choice(_BEFORE) + text
    if rng.random() < 0.08:
        text = text.rstrip(":") + ("" if text[-1] in ".?" else ".") + rng.choice(after)
    return text


def ask_one(rng: random.Random, field: str, kind: str) -> str:
    """A question for one field, given as the words or the key that name it, of a document of this kind."""
    text = rng.choice(_ONE)
    if rng.random() < 0.2:
        stop = text[-1] if text[-1] in ".?" else ""
        if not text.endswith(("please.", ":")):
            text = f"{text.removesuffix(stop)} {rng.choice(_PLACE).format(k=kind)}{stop}"
    return _dress(rng, text.format(f=field), _AFTER)


def enumerate_fields(rng: random.Random, fields: list[str]) -> str:
    """`the vendor, the total and the due date`, or another list of the same."""
    article = rng.choice(("the ", "the ", "", ""))
    named = [article + field for field in fields]
    if article and rng.random() < 0.4:
        named[1:] = fields[1:]
    form = rng.randrange(6)
    if form == 0:
        return ", ".join(named)
    if form == 1 and len(named) > 2:
        return "\n" + "\n".join(f"- {field}" for field in named)
    last = rng.choice((" and ", " and ", " and ", ", and ", " & ", " plus "))
    return ", ".join(named[:-1]) + last + named[-1]


def ask_several(rng: random.Random, fields: list[str]) -> str:
    """A request for a JSON object of these fields."""
    return _dress(rng, rng.choice(_SEVERAL).format(l=enumerate_fields(rng, fields)).strip(), _AFTER_JSON)


def ask_all(rng: random.Random, kind: str) -> str:
    """A request for the whole document as JSON."""
    return _dress(rng, rng.choice(_ALL).format(k=kind), _AFTER_JSON)


def chat(rng: random.Random) -> str:
    """Something said without any document."""
    text = rng.choice(_CHAT)
    while "{w}" in text:
        text = text.replace("{w}", words.any_word(rng), 1)
    return _finish(rng, text.replace("{n}", str(rng.randrange(100))))
