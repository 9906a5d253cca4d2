"""One tokenizer, as the rest of the service sees it: text to ids, ids to text, and the few special ids.

Knows a directory in the Hugging Face layout (`tokenizer.json`, or `tokenizer.model` for sentencepiece);
refuses code from the repository and any network call.
"""

from pathlib import Path
from typing import Any

from zopilot_gpu.errors import ModelUnavailable


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

    def render_chat(self, text: str) -> str:
        """`text` as a user turn in the model's own chat template; as it is where there is none."""
        if not self._tokenizer.chat_template:
            return text
        turn = [{"role": "user", "content": text}]
        rendered: str = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return rendered


def _loader(directory: Path) -> Any:
    """The class that reads `directory`. The automatic one, for sentencepiece, imports all of torch's compiler: two seconds."""
    if (directory / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (heavy; not needed to import the service)

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer  # noqa: PLC0415

    return AutoTokenizer
