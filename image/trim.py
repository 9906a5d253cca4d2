"""Takes out of installed packages what the service never loads; `python image/trim.py SITE_PACKAGES`, as the Dockerfile does.

Standard library only. Each line of the table says what goes and why it is never missed; `image/check.py` then proves that what
is left works, and docs/image.md has the sizes. Packages stay installed: their metadata and licences are not touched, so `pip
check` sees them.
Needs `strip` (binutils). Refuses to keep a library whose own dependency it has taken away.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DROPPED = {
    # runners/device.py switches cuDNN off: torch then computes convolutions and attention by itself. The first library and the
    # graph stay, because torch links the one and asks the other for its version.
    "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9": "cuDNN is switched off",
    "nvidia/cudnn/lib/libcudnn_engines_runtime_compiled.so.9": "cuDNN is switched off",
    "nvidia/cudnn/lib/libcudnn_adv.so.9": "cuDNN is switched off",
    "nvidia/cudnn/lib/libcudnn_cnn.so.9": "cuDNN is switched off",
    "nvidia/cudnn/lib/libcudnn_ops.so.9": "cuDNN is switched off",
    "nvidia/cudnn/lib/libcudnn_heuristic.so.9": "cuDNN is switched off",
    "nvidia/cusolver/lib/libcusolverMg.so.11": "solvers over several GPUs; torch links the other one",
    "nvidia/cublas/lib/libnvblas.so.12": "replaces BLAS in other people's programs",
    "nvidia/cufft/lib/libcufftw.so.11": "FFTW's interface to cuFFT",
    "nvidia/cuda_cupti/lib/libnvperf_*.so": "hardware counters of a profiler",
    "nvidia/cuda_cupti/lib/libcheckpoint.so": "hardware counters of a profiler",
    "nvidia/cuda_cupti/lib/libpcsamplingutil.so": "hardware counters of a profiler",
    "nvidia/cuda_nvrtc/lib/libnvrtc*.alt.so*": "the other of two builds of a compiler; torch loads the first",
    "nvidia/cufile/lib/libcufile_rdma.so.1": "GPUDirect Storage over RDMA",
    "nvidia/*/include": "headers; Triton has its own",
    "torch/include": "headers for C++ extensions",
    "torch/share": "CMake files",
    "torch/bin/protoc*": "a compiler",
    "triton/_C/libproton.so": "Triton's profiler",
    "triton/instrumentation": "Triton's own tests",
    "triton/backends/nvidia/lib/cupti": "Triton's profiler",
    "triton/backends/nvidia/bin/nvdisasm": "reads compiled kernels, for people",
    "triton/backends/nvidia/bin/cuobjdump": "reads compiled kernels, for people",
    "triton/backends/amd/include": "other makers' cards",
    "triton/backends/amd/lib": "other makers' cards",
    "bitsandbytes/libbitsandbytes_rocm*.so": "other makers' cards",
    "bitsandbytes/libbitsandbytes_xpu*.so": "other makers' cards",
    "networkx/**/tests": "tests",
    "numpy/**/tests": "tests",
    "sympy/**/tests": "tests",
    "tornado/test": "tests",
}
STRIPPED = "triton/_C/libtriton.so"  # 380 of its 535 MB are debug sections
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())


def other_cuda_versions(site_packages: Path) -> Iterator[Path]:
    """Bitsandbytes' libraries for other versions of CUDA than torch's, which is the one that it loads."""
    found = re.search(r"^cuda[^=]*= '(\d+)\.(\d+)'", (site_packages / "torch/version.py").read_text(), re.MULTILINE)
    if not found:
        raise SystemExit("trim: torch was not built for CUDA")
    ours = f"libbitsandbytes_cuda{found[1]}{found[2]}.so"
    others = [path for path in site_packages.glob("bitsandbytes/libbitsandbytes_cuda*.so") if path.name != ours]
    if not (site_packages / "bitsandbytes" / ours).is_file():
        raise SystemExit(f"trim: bitsandbytes has no {ours}")
    yield from others


def drop(site_packages: Path) -> dict[str, int]:
    """Removes all of the table; pattern -> bytes that it freed."""
    freed = {}
    for pattern in DROPPED:
        paths = list(site_packages.glob(pattern))
        freed[pattern] = sum(map(remove, paths))
    freed["bitsandbytes/libbitsandbytes_cuda*.so"] = sum(map(remove, list(other_cuda_versions(site_packages))))
    return freed


def remove(path: Path) -> int:
    """Removes a file or a directory; the bytes that it had."""
    if not path.exists():  # a directory within one that is gone already
        return 0
    size = size_of(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return size


def strip(library: Path) -> int:
    """Takes the debug sections out; the bytes that it freed."""
    before = library.stat().st_size
    subprocess.run(["strip", "--strip-debug", library], check=True)
    return before - library.stat().st_size


def missing(site_packages: Path) -> list[str]:
    """What a library that is left needs and what was taken away."""
    dropped = {Path(pattern).name for pattern in DROPPED if ".so" in pattern}
    found = []
    for library in [*site_packages.glob("nvidia/*/lib/*.so*"), *site_packages.glob("torch/lib/*.so*")]:
        told = subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True).stdout
        found += [f"{library.name} needs {name}" for name in _NEEDED.findall(told) if name in dropped]
    return found


def main(site_packages: Path) -> None:
    """Drops, strips, looks, and prints what it freed."""
    freed = drop(site_packages)
    freed[f"{STRIPPED} (debug sections)"] = strip(site_packages / STRIPPED)
    if problems := missing(site_packages):
        raise SystemExit(f"trim: {'; '.join(problems)}")
    for name, num_bytes in sorted(freed.items(), key=lambda item: -item[1]):
        print(f"trim: {num_bytes / 1e6:8.1f} MB  {name}")
    print(f"trim: {sum(freed.values()) / 1e6:8.1f} MB  in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
