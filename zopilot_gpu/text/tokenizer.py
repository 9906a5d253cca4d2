"""One tokenizer, as the rest of the service sees it: text to ids, ids to text, and the few special ids.

Knows a directory in the Hugging Face layout (`tokenizer.json`, or `tokenizer.model` for sentencepiece);
refuses code from the repository and any network call.
"""

import json
import re
from pathlib import Path
from typing import Any

from zopilot_gpu.errors import ModelUnavailable

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# GPT-2's alphabet for bytes: those that print are themselves, the others follow from U+0100 on.
_BYTE_LEVEL = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + at): byte for at, byte in enumerate(_OTHERS)}


class Tokenizer:
    """A fast tokenizer loaded from `directory`.

    Raises:
        ModelUnavailable: the directory holds no tokenizer that can be read.
    """

    def __init__(self, directory: Path) -> None:
        try:
            tokenizer: Any = _loader(directory).from_pretrained(
                directory, use_fast=True, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a damaged file makes the libraries raise anything
            problem = f"No readable tokenizer in {directory}: {type(error).__name__}: {error}"
            raise ModelUnavailable(detail=problem) from error
        self._tokenizer = tokenizer
        self.bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.eos_id: int | None = tokenizer.eos_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(self.serialised())["decoder"])

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`, no BOS or EOS added; with `special` off, `</s>` and its kin are ordinary characters."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def serialised(self) -> str:
        """The tokenizer as the tokenizers library writes it, with what tokenizer_config.json adds."""
        text: str = self._tokenizer.backend_tokenizer.to_str()
        return text

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for: a piece of text, or one byte of a character; a special token's name."""
        piece: str = self._tokenizer.convert_ids_to_tokens(token_id)
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if self._is_byte_level:
            return bytes(_BYTE_LEVEL[character] for character in piece if character in _BYTE_LEVEL)
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode(errors="replace")

    def render_chat(self, *texts: str) -> str:
        """`texts` as turns of user and model in the model's own chat template, the first and the last the user's.

        Without a chat template: the one text as it is.

        Raises:
            ValueError: there is no template for more than one, or it refuses them.
        """
        if not self._tokenizer.chat_template:
            (text,) = texts
            return text
        turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
        try:
            rendered: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program: what it raises is its own
            raise ValueError(str(error)) from error
        return rendered


def _loader(directory: Path) -> Any:
    """The class that reads `directory`. The automatic one, for sentencepiece, imports all of torch's compiler: two seconds."""
    if (directory / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (heavy; not needed to import the service)

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer  # noqa: PLC0415

    return AutoTokenizer
