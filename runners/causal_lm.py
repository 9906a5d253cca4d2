"""A causal language model as transformers gives it, loaded in NF4 and ready to continue token ids.

Knows torch, transformers and bitsandbytes; refuses HTTP, events and other threads. One generation at a time.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import bitsandbytes.cextension
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, StoppingCriteria
from transformers.generation.logits_process import LogitsProcessor, RepetitionPenaltyLogitsProcessor
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from runners.base import Progress
from runners.device import Device
from zopilot_gpu.engine.grammar import Grammar, allow, open_masks
from zopilot_gpu.engine.sampler import mask, read_score, score
from zopilot_gpu.errors import ModelUnavailable, in_a_line
from zopilot_gpu.events import Sampling, Score
from zopilot_gpu.store.locate import Located

_KEPT_IN_BF16 = ["gate", "lm_head"]  # the router and the head decide; 4 bits would change which expert and which token


class CausalLM:
    """A loaded model.

    Args:
        located: the files; safetensors only, and never code from the repository.
        device: where to put it.
        progress: told a word and a share (0 to 1) as loading goes on.

    Raises:
        ModelUnavailable: the files can't be loaded, or don't fit.
    """

    def __init__(self, located: Located, device: Device, progress: Progress) -> None:
        self.device = device
        _refuse_dead_library(device)
        try:
            with _quiet_libraries(), _shard_progress(progress):
                self._model, report = AutoModelForCausalLM.from_pretrained(
                    located.directory,
                    dtype=torch.bfloat16,
                    device_map={"": device.name},
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                    **_quantization(located),
                )
            _check_complete(self._model, report)
        except torch.OutOfMemoryError as error:
            raise ModelUnavailable(detail=f"{located.name} does not fit into the memory of {device.name}.") from error
        except Exception as error:  # a damaged file makes the libraries raise anything
            problem = (
                f"{located.directory} could not be loaded ({in_a_line(error)}): fetch its files anew, or name another model."
            )
            raise ModelUnavailable(detail=problem) from error
        self._model.eval()
        self.max_context_tokens: int = self._model.config.max_position_embeddings
        self.vocab_size: int = self._model.config.vocab_size
        self.eos_ids = _as_ids(self._model.generation_config.eos_token_id, self._model.config.eos_token_id)

    def continue_ids(  # noqa: PLR0913  (all of one generation)
        self,
        ids: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        on_token: Callable[[int], None],
        should_stop: Callable[[], bool],
        *,
        grammar: Grammar | None = None,
        scores: "Scores | None" = None,
    ) -> None:
        """Generates up to `max_tokens` after `ids`, as `grammar` allows. `should_stop` is asked after each `on_token`.

        `scores` are there to be asked in `on_token`.
        """
        if sampling.seed is None:
            torch.seed()
        else:
            torch.manual_seed(sampling.seed)
        prompt = torch.tensor([list(ids)], device=self.device.name)
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=self._generation_config(max_tokens, sampling, 0 if grammar else sampling.min_tokens),
            use_model_defaults=False,
            streamer=_Streamer(on_token),
            logits_processor=[
                _OnlyNumbers(),
                *([_Follow(grammar, len(ids))] if grammar else []),
                *([scores] if scores else []),
                RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)),
                _Add(sampling, len(ids)),
            ],
            stopping_criteria=[_Stop(should_stop)],
        )

    def _generation_config(self, max_tokens: int, sampling: Sampling, min_tokens: int) -> GenerationConfig:
        drawn = sampling.temperature > 0
        return GenerationConfig(
            max_new_tokens=max_tokens,
            min_new_tokens=min(min_tokens, max_tokens),
            do_sample=drawn,
            temperature=sampling.temperature if drawn else None,
            top_p=sampling.top_p if drawn else None,
            top_k=sampling.top_k if drawn else None,
            eos_token_id=self.eos_ids or None,
            pad_token_id=self.eos_ids[0] if self.eos_ids else 0,
        )


class _Streamer(BaseStreamer):
    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token at a time."""
        if self._prompt_seen:
            self._on_token(int(value.flatten()[-1]))
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""


class _OnlyNumbers(LogitsProcessor):
    """NOTE: drawing from NaN trips an assertion on the GPU, after which every call of this process fails."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        if not bool(scores.amax(dim=-1).isfinite().all()):
            raise FloatingPointError("logits that are no numbers")
        return scores


class _Follow(LogitsProcessor):
    """Leaves the tokens that a grammar allows next, or the one that it forces."""

    def __init__(self, grammar: Grammar, num_prompt_tokens: int) -> None:
        self._grammar = grammar
        self._num_known = num_prompt_tokens
        self._forced: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        known = input_ids[0, self._num_known :].tolist()
        self._num_known += len(known)
        if self._forced:
            self._forced.pop(0)
        elif known:
            self._grammar.accept(known)
            self._forced = self._grammar.forced()
            self._grammar.accept(self._forced)
        masks = open_masks(1, scores.shape[1])
        if self._forced:
            masks[:] = 0
            allow(masks, 0, self._forced[:1])
        else:
            self._grammar.fill(masks, 0)
        return mask(scores, torch.from_numpy(masks).to(scores.device))


class Scores(LogitsProcessor):
    """What the model thinks of the token to come; see `zopilot_gpu.events.Score`."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002, D102
        self._logits = scores.float()
        return scores

    def of(self, token_id: int) -> Score:
        """The score of the token that was drawn."""
        token = torch.tensor([token_id], device=self._logits.device)
        return read_score(token_id, score(self._logits, token, self._num_top)[0].tolist(), self._num_top)


class _Add(LogitsProcessor):
    """The bias, and OpenAI's penalties for what the answer has by now."""

    def __init__(self, sampling: Sampling, num_prompt_tokens: int) -> None:
        self._sampling = sampling
        self._num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        sampling = self._sampling
        added = torch.zeros_like(scores[0])
        for token, value in sampling.logit_bias:
            added[token] = value
        tokens, counts = torch.unique(input_ids[0, self._num_prompt_tokens :], return_counts=True)
        added[tokens] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        return scores + added


class _Stop(StoppingCriteria):
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self._should_stop(), device=input_ids.device)


def _refuse_dead_library(device: Device) -> None:
    """Raises ModelUnavailable where bitsandbytes could not load its native library, and stands in with one that only raises.

    On a CPU torch computes in its place.
    """
    library = bitsandbytes.cextension.lib
    if device.name != "cpu" and isinstance(library, bitsandbytes.cextension.ErrorHandlerMockBNBNativeLibrary):
        said = in_a_line(OSError(library.error_msg))
        remedy = "install the locked requirements anew, or use the image that was built for this card"
        raise ModelUnavailable(detail=f"bitsandbytes' native library can't be loaded ({said}): {remedy}.")


def _quantization(located: Located) -> dict[str, BitsAndBytesConfig]:
    """The keyword for NF4 where the source is in full precision; none for a checkpoint that brings its own quantisation."""
    config = transformers.PretrainedConfig.get_config_dict(located.directory, local_files_only=True)[0]
    if "quantization_config" in config:
        return {}
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=_KEPT_IN_BF16,
    )
    return {"quantization_config": nf4}


def _check_complete(model: Any, report: dict[str, Any]) -> None:
    """Refuses a checkpoint that does not fill the model: transformers makes up what is missing and drops what is too many.

    Raises:
        ValueError: naming some of the tensors.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if names := sorted(map(str, report[kind])):
            raise ValueError(f"{kind.replace('_', ' ')}: {', '.join(names[:3])} ({len(names)} in all)")
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features):
            raise ValueError(f"{name} has the shape {tuple(state.shape)}, not {(module.out_features, module.in_features)}")


def _as_ids(*candidates: int | list[int] | None) -> list[int]:
    for candidate in candidates:
        if candidate is not None:
            return [candidate] if isinstance(candidate, int) else list(candidate)
    return []


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Loading speaks through our log; advice of the libraries about it is for developers."""
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _shard_progress(progress: Progress) -> Iterator[None]:
    """Reports each weight file that is read. transformers offers no hook but its progress bar, so that is what we are."""

    def bar(files: Any = None, total: int | None = None, **_: Any) -> Iterator[Any]:
        count = total or len(files)
        for index, file in enumerate(files):
            progress(f"weights, file {index + 1} of {count}", index / count)
            yield file

    original = transformers_logging.tqdm
    transformers_logging.tqdm = bar
    try:
        yield
    finally:
        transformers_logging.tqdm = original
