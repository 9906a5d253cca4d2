"""From the schema of a job to the grammar of its sequence. Knows both and the deadline between them; no tensors.

Compiling runs on a thread of its own, under the limits of `engine.grammar`: a schema that is too much for them costs its
caller a refusal, and others at most the wait for that thread.
"""

import asyncio
import json
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from zopilot_gpu.engine.grammar import Compiler, Grammar, GrammarError
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.text.json_schema import narrow
from zopilot_gpu.text.patterns import Unsupported
from zopilot_gpu.text.tokenizer import Tokenizer

_COMPILE_S = 5.0
_STACK_BYTES = 64 * 1024**2  # NOTE: the library compiles recursively, and a stack that overflows takes the process with it


class Grammars:
    """Makes the grammars of one model.

    Args:
        tokenizer: the model's.
        vocab_size: columns of its logits.
        eos_ids: tokens that end its answers.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Collection[int]) -> None:
        self._compiler = Compiler(tokenizer.serialised(), vocab_size, eos_ids)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        usual = threading.stack_size(_STACK_BYTES)
        try:
            self._thread.submit(len, ()).result()  # starts the thread
        finally:
            threading.stack_size(usual)

    async def of(self, schema: str | None) -> Grammar | None:
        """The grammar for a job's schema; None for none.

        Raises:
            InvalidRequest: 422 where it can't be followed, with the reason.
        """
        if schema is None:
            return None
        try:
            async with asyncio.timeout(_COMPILE_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._make, schema)
        except TimeoutError:
            raise _refusal("is too large to be followed") from None
        except (GrammarError, Unsupported) as error:
            raise _refusal(" ".join(str(error).split())[:200]) from None

    def _make(self, schema: str) -> Grammar:
        return self._compiler.compile(json.dumps(narrow(json.loads(schema)), ensure_ascii=False))


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(422, "json_schema_unsupported", f"json_schema: {reason}")
