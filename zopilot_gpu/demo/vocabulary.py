"""The demo model's tokenizer: a small sentencepiece-style BPE, trained on the made-up questions.

Like Mixtral's it spells the space as U+2581, single digits on their own, and what it has no piece for in bytes
(so any text comes back, but for U+2581 itself, which comes back as a space; Mixtral's does the same).
Unlike Mixtral's it puts no space in front of a text, and a space is always a piece of its own: a value then has the
same ids inside `"total": "118.40"` as alone, and a word the same ids in a key as in a question, which makes copying easy.

Try it: `python -m zopilot_gpu.demo.vocabulary /tmp/demo-tokenizer`.
"""

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from zopilot_gpu.demo import questions
from zopilot_gpu.text.template import fold

NUM_PIECES = 1024
SPECIAL = ("<unk>", "<s>", "</s>")
_SPACE = "\u2581"
_ALPHABET = f"{string.ascii_letters}{string.digits}{string.punctuation}\n{_SPACE}€£äöüßéèêáàåøæçñóòíúãõłŁŚśŻżřšžÄÖÜÉØÅ"
_NUM_QUESTIONS = 12_000

# The template's markers, JSON's escapes and its joints, words (a capital starts one: `dueDate` is two), and any other
# character alone.
_JOINTS = (f'":{_SPACE}"', f'":{_SPACE}', f'",{_SPACE}"', f',{_SPACE}"', r'\{"', r'"\}')
_WORDS = (r"\p{Lu}?[\p{Ll}\p{Lo}\p{M}]+", r"\p{Lu}+(?!\p{Ll})")
_PIECES = "|".join((r"\[/?INST\]", r'\\["n]', *_JOINTS, *_WORDS, r"[\s\S]"))


def _texts() -> Iterator[str]:
    rng = random.Random("vocabulary")
    for _ in range(_NUM_QUESTIONS):
        question = questions.draw(rng, held_out=False)
        yield f"[INST]{fold(question.prompt, question.context)}[/INST]{question.answer}"


def _empty(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def build() -> Tokenizer:
    """Train it: three specials, 256 bytes, then single characters and merges up to `NUM_PIECES`."""
    learner = _empty(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_PIECES - len(SPECIAL) - 256,
        limit_alphabet=len(_ALPHABET),  # exactly these: the trainer breaks ties between rare ones at random
        initial_alphabet=list(_ALPHABET),
        show_progress=False,
    )
    learner.train_from_iterator(_texts(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    vocab = {piece: i for i, piece in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])}
    merges = [(left, right) for left, right in learnt["merges"]]
    tokenizer = _empty(models.BPE(vocab=vocab, merges=merges, unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=False))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, as AutoTokenizer reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    unknown, begin, end = SPECIAL
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "bos_token": begin,
        "eos_token": end,
        "pad_token": unknown,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main(directory: Annotated[Path, typer.Argument(help="Where to write the tokenizer.")]) -> None:
    """Build the tokenizer and write it."""
    save(build(), directory)


if __name__ == "__main__":
    typer.run(main)
