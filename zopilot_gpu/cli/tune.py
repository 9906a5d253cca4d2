"""`zopilot-gpu tune`: measures shapes of programs on this machine's GPU once, for every later start. The service never does."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from runners.environment import set_before_torch
from zopilot_gpu.cli.prepare import settings_without_key
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.store import files
from zopilot_gpu.store.locate import search_roots

_console = Console(highlight=False, soft_wrap=True)
_MIXTRAL_8X7B = MixtralConfig(32_000, 4096, 14_336, 32, 32, 8, 128, 8, 2, 1e6, 1e-5, 32_768, tie_embeddings=False)


def tune(
    volume: Annotated[Path | None, typer.Option(help="Where to leave the table; the first volume otherwise.")] = None,
) -> None:
    """Measure how Mixtral-8x7B's kernels run best on this GPU, for 5 to 10 minutes; needs 3 GB of its memory."""
    set_before_torch()
    import torch  # noqa: PLC0415  (takes seconds)

    from runners import tuned  # noqa: PLC0415

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        _console.print("[red]There is no GPU here that the kernels run on (sm_80 or newer).[/red]")
        raise typer.Exit(1)
    settings = settings_without_key()
    device = torch.device("cuda")
    roots = [root for root in search_roots(volume or settings.volume, settings.hf_home) if files.is_writable(root)]
    if not roots:
        _console.print("[red]No volume that can be written: name one with --volume.[/red]")
        raise typer.Exit(1)
    from zopilot_gpu.model.kernels import shapes  # noqa: PLC0415
    from zopilot_gpu.model.kernels.tune import measure  # noqa: PLC0415  (triton is for a GPU)

    shapes.use_shipped(device)  # whose rungs are measured
    table = measure(_MIXTRAL_8X7B, device, _console.print)
    path = tuned.file_for(roots[0], device)
    tuned.save(table, path)
    _console.print(str(path))
