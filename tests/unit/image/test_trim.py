"""What is taken out of an image's packages, and what is never."""

import importlib.util
from pathlib import Path

import pytest

from image.trim import DROPPED, STRIPPED, drop, missing

ONLY_WITH_CUDA_12_8 = {"nvidia/cuda_nvrtc/lib/libnvrtc*.alt.so*", "nvidia/cufile/lib/libcufile_rdma.so.1"}


@pytest.fixture(scope="module")
def installed() -> Path:
    """Where this environment has its packages, as locked for the default image."""
    found = importlib.util.find_spec("torch")
    assert found
    assert found.origin
    return Path(found.origin).parents[1]


@pytest.mark.parametrize("pattern", sorted(set(DROPPED) - ONLY_WITH_CUDA_12_8))
def test_every_line_of_the_table_finds_something(installed: Path, pattern: str) -> None:
    assert next(installed.glob(pattern), None)


def test_only_the_libraries_for_torchs_own_cuda_stay(tmp_path: Path) -> None:
    kept = ["torch/lib/libtorch_cuda.so", "nvidia/cudnn/lib/libcudnn.so.9", "triton/backends/nvidia/bin/ptxas", STRIPPED]
    kept += ["bitsandbytes/libbitsandbytes_cuda124.so", "bitsandbytes/libbitsandbytes_cpu.so", "triton/backends/amd/driver.py"]
    gone = ["bitsandbytes/libbitsandbytes_cuda128.so", "nvidia/cudnn/lib/libcudnn_adv.so.9", "torch/include/a/b.h"]
    gone += ["sympy/core/tests/test_x.py", "bitsandbytes/libbitsandbytes_rocm70.so", "triton/backends/nvidia/bin/nvdisasm"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "torch/version.py").write_text("__version__ = '2.6.0+cu124'\ncuda: Optional[str] = '12.4'\n")
    assert sum(drop(tmp_path).values()) == 5 * len(gone)
    assert [name for name in kept + gone if (tmp_path / name).exists()] == kept


def test_no_library_that_torch_needs_is_taken_away(installed: Path) -> None:
    """Of those left: what goes may need what goes."""
    gone = {path.name for pattern in DROPPED for path in installed.glob(pattern)}
    assert [told for told in missing(installed) if told.split(" needs ")[0] not in gone] == []


def test_without_the_library_for_torchs_cuda_nothing_is_built(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = '12.4'\n")
    with pytest.raises(SystemExit, match=r"bitsandbytes has no libbitsandbytes_cuda124\.so"):
        drop(tmp_path)
