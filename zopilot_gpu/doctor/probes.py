"""Small things that are tried here: a library, a kernel, a read, a mount, a port. Says what happened; never raises."""

import ctypes
import errno
import importlib.util
import mmap
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from zopilot_gpu.errors import in_a_line

_READ_BYTES = 256 << 20
_READ_S = 2.0
_PIECE_BYTES = 8 << 20
_MOUNTS = Path("/proc/self/mountinfo")
_EXTENSION = "#include <Python.h>\nint answer(void) { return PyLong_Check(Py_None); }\n"


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a try: `value` where it worked, `problem` where it did not; both are empty where it was not tried."""

    value: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    """The file system that a path is on."""

    point: str
    kind: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Speed:
    """A measured read."""

    num_bytes: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        """How fast."""
        return self.num_bytes / max(self.seconds, 1e-9)


def bitsandbytes_library(cuda: tuple[int, int] | None) -> Tried:
    """Whether bitsandbytes' library for a CUDA, or for the CPU, can be loaded. Imports torch, whose libraries it needs."""
    import torch  # noqa: F401, PLC0415  (it brings CUDA's libraries into the process)

    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None or not spec.submodule_search_locations:
        return Tried(problem="bitsandbytes is not installed")
    name = f"libbitsandbytes_cuda{cuda[0]}{cuda[1]}.so" if cuda else "libbitsandbytes_cpu.so"
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        return Tried(problem=f"{path} is not there")
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return Tried(problem=in_a_line(error))
    return Tried(f"{name} loads")


def bitsandbytes_quantises(device: str) -> Tried:
    """Whether bitsandbytes quantises one tensor to NF4 on a device, as `zopilot_gpu.model.nf4` does."""
    try:
        import torch  # noqa: PLC0415
        from bitsandbytes import functional  # noqa: PLC0415  (takes a second)

        from zopilot_gpu.model import nf4  # noqa: PLC0415

        weight = torch.linspace(-1, 1, 64 * 64, dtype=torch.bfloat16, device=device).view(64, 64)
        theirs = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
        if not torch.allclose(theirs.float(), nf4.quantise(weight).dequantise(torch.float32), atol=0.01):
            return Tried(problem="a tensor that bitsandbytes quantised is not what it should be")
    except Exception as error:  # noqa: BLE001  (a dead library makes it raise anything)
        return Tried(problem=in_a_line(error))
    return Tried(f"a tensor quantised on the {'GPU' if device == 'cuda' else 'CPU'}")


def triton_runs() -> Tried:
    """Whether Triton compiles a kernel anew, and the GPU runs it."""
    try:
        import torch  # noqa: PLC0415

        from zopilot_gpu.doctor.kernel import add_one_kernel  # noqa: PLC0415

        with _own_cache():
            began_s = time.monotonic()
            x = torch.zeros(64, device="cuda")
            add_one_kernel[(1,)](x)
            if x.sum().item() != 64:
                return Tried(problem="a kernel computed nonsense")
    except Exception as error:  # noqa: BLE001  (a missing compiler makes it raise anything)
        return Tried(problem=in_a_line(error))
    return Tried(f"a kernel compiled and run in {time.monotonic() - began_s:.1f} s")


def triton_compiles(archs: tuple[str, ...]) -> Tried:
    """Whether Triton makes machine code for the newest of `archs`, and a C compiler what calls it; needs no GPU."""
    if problem := _c_compiler_problem():
        return Tried(problem=problem)
    newest = max((int(digits) for arch in archs if (digits := arch.removeprefix("sm_")).isdigit()), default=90)
    try:
        import triton  # noqa: PLC0415
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415
        from triton.compiler import ASTSource  # noqa: PLC0415

        from zopilot_gpu.doctor.kernel import add_one_kernel  # noqa: PLC0415

        with _own_cache():
            made = triton.compile(ASTSource(add_one_kernel, {"x": "*fp32"}), target=GPUTarget("cuda", newest, 32))
    except Exception as error:  # noqa: BLE001  (as above)
        return Tried(problem=in_a_line(error))
    return Tried(f"a kernel compiled for sm_{newest}, {len(made.asm['cubin'])} bytes")


def c_compiler() -> str | None:
    """The C compiler that Triton will call."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def _c_compiler_problem() -> str | None:
    """What keeps the C compiler from making a Python extension, as Triton has it do; None when nothing does."""
    compiler = c_compiler()
    if compiler is None:
        return "there is no C compiler"
    with TemporaryDirectory() as folder:
        source = Path(folder) / "extension.c"
        source.write_text(_EXTENSION)
        include = sysconfig.get_paths()["include"]
        command = [compiler, "-shared", "-fPIC", f"-I{include}", str(source), "-o", f"{folder}/extension.so"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)  # noqa: S603  (our own command)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            return f"{compiler} makes no Python extension: {in_a_line(RuntimeError(said.decode(errors='replace')))}"
    return None


@contextmanager
def _own_cache() -> Iterator[None]:
    """NOTE: a kernel that is in Triton's cache is not compiled, and shows nothing."""
    before = os.environ.get("TRITON_CACHE_DIR")
    with TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TRITON_CACHE_DIR"]
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


def read_speed(path: Path) -> Speed | None:
    """Reads a bounded piece of a file past the page cache; None where it can't be read."""
    try:
        fd = _open_past_the_cache(path)
    except OSError:
        return None
    buffer = mmap.mmap(-1, _PIECE_BYTES)  # O_DIRECT wants whole pages
    began_s = time.monotonic()
    num_bytes = 0
    try:
        while num_bytes < _READ_BYTES and time.monotonic() - began_s < _READ_S:
            if (count := os.preadv(fd, [buffer], num_bytes)) == 0:
                break
            num_bytes += count
            if count < _PIECE_BYTES:
                break
    except OSError:
        return None
    finally:
        os.close(fd)
        buffer.close()
    return Speed(num_bytes, time.monotonic() - began_s) if num_bytes else None


def _open_past_the_cache(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have no such reads
            raise
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


def mount_of(path: Path, table: str | None = None) -> Mount:
    """The file system that `path` is on; of several at one place the last one counts. `table` is in the form of mountinfo."""
    wanted = path.resolve()
    found = Mount("/", "unknown", read_only=False)
    for line in (_MOUNTS.read_text() if table is None else table).splitlines():
        ours, _, theirs = line.partition(" - ")
        _, _, _, _, point, options, *_ = ours.split()
        point = point.encode().decode("unicode_escape")  # a space is \\040
        kind, _, of_disk = theirs.split(" ", 2)
        if wanted.is_relative_to(point) and len(point) >= len(found.point):
            found = Mount(point, kind, "ro" in options.split(",") or "ro" in of_disk.split()[-1].split(","))
    return found


def port_state(port: int) -> str:
    """`free`, `taken`, or `denied`: this user may not listen there."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
        except PermissionError:
            return "denied"
        except OSError:
            return "taken"
    return "free"
