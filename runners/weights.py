"""From files to a Mixtral on its device: from the packed form, or from a checkpoint as transformers knows it.

Knows the store's tensors and the model's names for them; refuses what does not make exactly the model of its config.json.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from runners.base import Progress
from runners.device import Form
from zopilot_gpu.errors import ModelUnavailable, ServiceError, in_a_line
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.weights import Thrift, build, build_packed
from zopilot_gpu.store import load as packed
from zopilot_gpu.store.ensure import Prepared
from zopilot_gpu.store.locate import weight_files


def load(
    prepared: Prepared, config: MixtralConfig, dtype: torch.dtype, device: torch.device, progress: Progress, form: Form
) -> Mixtral:
    """The model that the store has prepared, in `form`; see `zopilot_gpu.model.weights.build`.

    NOTE: a packed file is one piece of memory, which is free only when no tensor of it is left: on a GPU its weights are put in
    tiles where they lie, or a layer would be there twice on the way.

    Raises:
        Damaged: the packed form is not what was published; it has been set aside where the volume lets us.
        ModelUnavailable: a file is damaged, or the files do not make the model that its config describes.
    """
    directory, dequantise = prepared.located.directory, form.name == "dequantised"
    if prepared.manifest is None:
        return load_source(directory, config, dtype, device, progress, dequantise=dequantise)
    try:
        tensors = packed.load(directory, prepared.manifest, device.type, lambda step, done, total: progress(step, done / total))
        thrift = Thrift(in_place=True, host_embedding=form.is_lean)
        return build_packed(config, tensors.pop, dtype, device, dequantise=dequantise, thrift=thrift)
    except torch.OutOfMemoryError as error:
        raise ModelUnavailable(detail=f"{directory.name} does not fit into the memory of {device}.") from error
    except (KeyError, ValueError) as error:
        raise ModelUnavailable(detail=f"{directory} does not hold the model of its config.json: {error}") from error


def load_source(
    directory: Path,
    config: MixtralConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    *,
    dequantise: bool = True,
) -> Mixtral:
    """The model in `directory`, from one or several safetensors files; see `zopilot_gpu.model.weights.build`.

    Raises:
        ModelUnavailable: a file is damaged, or the files do not make the model that its config describes.
    """
    paths = [directory / name for name in weight_files(directory)]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
            holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (a file is no mapping)
            taken = set[str]()

            def get(name: str) -> torch.Tensor:
                taken.add(name)
                if len(taken) % 64 == 0:
                    progress(f"weights, tensor {len(taken)} of {len(holder)}", len(taken) / len(holder))
                tensor: torch.Tensor = holder[name].get_tensor(name)
                return tensor

            model = build(config, get, dtype, device, dequantise=dequantise)
            _refuse_extra(set(holder) - taken, taken, config)
            return model
    except torch.OutOfMemoryError as error:
        raise ModelUnavailable(detail=f"{directory.name} does not fit into the memory of {device}.") from error
    except ServiceError:
        raise
    except Exception as error:  # a damaged file makes the libraries raise anything
        raise ModelUnavailable(detail=f"{directory} could not be loaded ({in_a_line(error)}): fetch its files anew.") from error


def _refuse_extra(left: set[str], taken: set[str], config: MixtralConfig) -> None:
    """Raises ValueError for tensors that were not taken, but for a codebook (NF4's own) and a tied head (the embedding)."""
    tied = {"lm_head.weight"} if config.tie_embeddings else set()
    extra = sorted(left - {f"{name}.quant_map" for name in taken} - tied)
    if extra:
        raise ValueError(f"unexpected tensors: {', '.join(extra[:3])} ({len(extra)} in all)")
