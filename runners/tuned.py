"""The table of shapes that `zopilot-gpu tune` leaves on a volume, beside the packed models. Knows where; measures nothing."""

import secrets
from importlib.metadata import version
from pathlib import Path

import torch

from zopilot_gpu.model.kernels import shapes
from zopilot_gpu.store import files

_FOLDER = Path("zopilot-gpu", "tuned")


def file_for(root: Path, device: torch.device) -> Path:
    """Of a card and of a Triton: another one compiles another way."""
    return root / _FOLDER / f"{shapes.card(device)}-triton{version('triton')}.json"


def use_for(device: torch.device, roots: list[Path]) -> str:
    """Takes the best table that there is for a GPU, and says why that one. A file that can't be read is only a reason."""
    tuned, what = None, ""
    for root in roots:
        path = file_for(root, device)
        try:
            tuned, what = files.read(path), str(path)
            break
        except (OSError, EOFError):
            continue
    table, why = shapes.choose(shapes.card(device), tuned, what)
    shapes.use(table)
    return why


def save(table: shapes.Table, path: Path) -> None:
    """Whole or not at all: others may read it meanwhile.

    Raises:
        OSError: the volume does not let us.
    """
    files.make_directory(path.parent, parents=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    files.write_new(part, [table.to_json().encode()])
    files.move(part, path)
    files.sync_directory(path.parent)
