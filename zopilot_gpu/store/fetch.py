"""Downloads a model into the cache, when the operator allowed it. The only file that may reach the network for weights.

Takes safetensors, configuration and tokenizer; never pickled weights or code. Resumes what an earlier try left.
"""

from pathlib import Path

from zopilot_gpu import log
from zopilot_gpu.errors import ModelUnavailable

_log = log.get(__name__)
_WANTED = ["*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "special_*"]
_NEVER = ["*/*", "consolidated*", "*.py", "*.bin", "*.pt", "*.pkl"]


def fetch(model: str, revision: str | None, cache: Path, token: str | None) -> Path:
    """The snapshot directory of `model` below `cache`, downloaded where it was not there.

    Raises:
        ModelUnavailable: the hub refused or could not be reached; the detail says what to do.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (heavy; most starts never download)
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError  # noqa: PLC0415

    _log.info("download_started", model=model, cache=str(cache))
    try:
        directory = snapshot_download(
            model, revision=revision, cache_dir=cache, token=token, allow_patterns=_WANTED, ignore_patterns=_NEVER
        )
    except GatedRepoError:
        remedy = f"{model} is gated: accept its terms on the hub and set HF_TOKEN to a token of that account."
        raise ModelUnavailable(detail=remedy) from None
    except RepositoryNotFoundError:
        remedy = f"The hub knows no {model}, or HF_TOKEN may not see it."
        raise ModelUnavailable(detail=remedy) from None
    except HFValidationError:
        raise ModelUnavailable(detail=f"{model} is neither a directory nor of the form ORG/NAME.") from None
    except (HfHubHTTPError, OSError) as error:
        remedy = f"{model} could not be downloaded ({type(error).__name__}): check the network and the space below {cache}."
        raise ModelUnavailable(detail=remedy) from error
    _log.info("download_done", model=model)
    return Path(directory)
