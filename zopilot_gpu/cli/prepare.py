"""`zopilot-gpu prepare`: does a first start's work beforehand: finds or downloads a model, packs it, and says where it is.

For people, and for a job that fills a volume once before services mount it.
"""

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from runners.environment import set_before_torch
from zopilot_gpu import log
from zopilot_gpu.cli.bars import Told, bars
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.settings import Settings
from zopilot_gpu.store import files
from zopilot_gpu.store.build import remedy
from zopilot_gpu.store.ensure import Wanted, ensure
from zopilot_gpu.store.fingerprint import damaged_blobs
from zopilot_gpu.store.layout import Absmax
from zopilot_gpu.store.locate import locate, search_roots
from zopilot_gpu.store.manifest import Damaged, check_hashes
from zopilot_gpu.store.published import Published, open_published, set_aside

_console = Console(highlight=False, soft_wrap=True)


def prepare(  # noqa: PLR0913  (one parameter an option)
    *,
    model: Annotated[str | None, typer.Option(help="ORG/NAME, a directory, or demo. Default: ZOPILOT_GPU_MODEL.")] = None,
    volume: Annotated[Path | None, typer.Option(help="Where to look and to pack first.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download what is not there.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file, and the source's where the cache names them so.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Also write a checkpoint for transformers into this new directory.")
    ] = None,
    synthetic: Annotated[str | None, typer.Option(help="A made-up model instead: mixtral-8x7b, small or demo-size.")] = None,
    absmax: Annotated[str | None, typer.Option(help="double (smallest; the default), bfloat16 or float32.")] = None,
    device: Annotated[str, typer.Option(help="Where to quantise: cpu or cuda.")] = "cpu",
) -> None:
    """Pack a model once, so that each start reads 24.5 GB instead of 93."""
    settings = settings_without_key()
    log.configure("warning")
    set_before_torch()
    roots = search_roots(volume or settings.volume, settings.hf_home)
    try:
        with bars(_console) as told:
            if synthetic:
                found = _make(synthetic, roots, _absmax(absmax) or "double", told)
            else:
                token = settings.hf_token.get_secret_value() if settings.hf_token else None
                wanted = Wanted(
                    model or settings.model,
                    settings.revision,
                    roots,
                    allow_download=download or settings.allow_download,
                    token=token,
                    absmax=_absmax(absmax),
                    device=device,
                )
                found = _pack(wanted, told, verify=verify)
            if export:
                _export(found, export, told)
    except ModelUnavailable as problem:
        _fail(problem.detail or problem.message)
    except OSError as error:
        _fail(remedy(error, Path(error.filename or roots[0])))
    _console.print(f"{found.manifest.num_bytes / 1e9:.2f} GB, absmax {found.manifest.absmax}: {found.directory}")


def settings_without_key() -> Settings:
    """The settings of the environment, for work that serves nobody."""
    os.environ.setdefault("ZOPILOT_GPU_ALLOW_ANONYMOUS", "true")
    return Settings()


def _absmax(name: str | None) -> Absmax | None:
    for known in (None, "double", "bfloat16", "float32"):
        if name == known:
            return known
    return _fail(f"--absmax is {name!r}, not double, bfloat16 or float32.")


def _pack(wanted: Wanted, told: Told, *, verify: bool) -> Published:
    """Packs; with `verify`, what does not stand a look at every byte is made anew, once."""
    if verify:
        _verify_source(wanted, told)
    found = _packed(wanted, told)
    if not verify:
        return found
    try:
        verify_all(found, told)
    except Damaged as problem:
        _console.print(f"{problem.detail} It is made anew.")
        set_aside(found.directory)
        found = _packed(wanted, told)
        verify_all(found, told)
    return found


def _verify_source(wanted: Wanted, told: Told) -> None:
    try:
        source = locate(wanted.model, wanted.revision, wanted.roots)
    except ModelUnavailable:
        return  # it may be packed, or about to be downloaded
    told("verifying the source", 0, 0)
    if damaged := damaged_blobs(source.directory):
        names = ", ".join(damaged[:3])
        raise ModelUnavailable(
            detail=f"{source.directory}: {names} ({len(damaged)} in all) changed since the download: remove them."
        )


def _packed(wanted: Wanted, told: Told) -> Published:
    prepared = ensure(wanted, told)
    if not prepared.is_packed:
        raise ModelUnavailable(detail=f"{prepared.located.directory} was not packed: {prepared.why}.")
    return open_published(prepared.located.directory)


def verify_all(found: Published, told: Told) -> None:
    """Hashes every file of a packed directory.

    Raises:
        Damaged: one has changed.
    """
    done = 0

    def add(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        told(f"verifying {found.directory.name}", done, found.manifest.num_bytes)

    check_hashes(found.directory, found.manifest, found.manifest.files, add)


def _make(name: str, roots: list[Path], absmax: Absmax, told: Told) -> Published:
    from zopilot_gpu.store.synthetic import make_packed  # noqa: PLC0415  (imports torch)

    root = next((root for root in roots if root.is_dir() and files.is_writable(root)), None)
    if root is None:
        places = ", ".join(map(str, roots))
        raise ModelUnavailable(detail=f"None of {places} is a directory that user {os.geteuid()} can write to.")
    return make_packed(name, root, absmax, lambda done, total: told(f"making {name}", done, total))


def _export(found: Published, target: Path, told: Told) -> None:
    from zopilot_gpu.store.export import export  # noqa: PLC0415  (imports torch)

    export(found, target, lambda done, total: told("exporting", done, total))
    _console.print(f"Exported: AutoModelForCausalLM.from_pretrained({str(target)!r})")


def _fail(message: str) -> NoReturn:
    typer.echo(f"zopilot-gpu: {message}", err=True)
    raise typer.Exit(1)
