"""What is tried on the machine, on this one: each try says what happened, and none raises."""

import errno
import os
import socket
from pathlib import Path

import pytest

from zopilot_gpu.doctor import probes
from zopilot_gpu.doctor.lock import compare
from zopilot_gpu.doctor.probes import Mount

TABLE = r"""
27 1 254:0 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
30 27 0:25 / /runpod-volume rw,relatime shared:1 - fuse.juicefs JuiceFS:volume rw,user_id=0
31 27 0:26 / /data ro,nosuid - nfs4 10.0.0.1:/export rw,vers=4.2
32 27 0:27 / /data/my\040models rw - ext4 /dev/sdb ro
33 27 0:28 / /twice rw - tmpfs tmpfs rw
34 33 0:29 / /twice rw - ext4 /dev/sdc rw
""".strip()


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/runpod-volume/huggingface/hub", Mount("/runpod-volume", "fuse.juicefs", read_only=False)),
        ("/runpod-volumes", Mount("/", "overlay", read_only=False)),
        ("/data/x", Mount("/data", "nfs4", read_only=True)),
        ("/data/my models/x", Mount("/data/my models", "ext4", read_only=True)),
        ("/twice", Mount("/twice", "ext4", read_only=False)),
    ],
)
def test_the_mount_of_a_path(path: str, mount: Mount) -> None:
    assert probes.mount_of(Path(path), TABLE) == mount


def test_this_machine_has_mounts() -> None:
    assert probes.mount_of(Path("/")).point == "/"
    assert probes.mount_of(Path("/proc/self")).kind == "proc"


def test_a_file_is_read_past_the_cache_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(9_000_001))
    speed = probes.read_speed(file)
    assert speed is not None
    assert speed.num_bytes == 9_000_001
    assert speed.bytes_per_s > 0
    assert probes.read_speed(tmp_path / "missing") is None
    assert probes.read_speed(tmp_path) is None


def test_a_file_system_without_direct_reads_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, really = tmp_path / "weights", os.open
    file.write_bytes(b"x" * 5000)

    def without(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(path, flags)

    monkeypatch.setattr(os, "open", without)
    speed = probes.read_speed(file)
    assert speed is not None
    assert speed.num_bytes == 5000


def test_a_port_is_free_or_taken() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert probes.port_state(port) == "taken"
    assert probes.port_state(port) == "free"


def test_the_libraries_of_this_environment_work() -> None:
    assert probes.bitsandbytes_library(None).value == "libbitsandbytes_cpu.so loads"
    assert "libbitsandbytes_cuda99" in probes.bitsandbytes_library((99, 0)).problem
    assert probes.bitsandbytes_quantises("cpu").value == "a tensor quantised on the CPU"


def test_a_kernel_compiles_for_a_card_that_is_not_here_where_there_is_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a kernel compiled for sm_90" in probes.triton_compiles(("sm_50", "sm_90")).value
    monkeypatch.setenv("CC", "/nonexistent/cc")
    assert "/nonexistent/cc makes no Python extension" in probes.triton_compiles(("sm_90",)).problem
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert probes.triton_compiles(("sm_90",)).problem == "there is no C compiler"


def test_packages_are_compared_with_the_lock_that_holds_this_torch(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    one, other = tmp_path / "requirements/runtime.lock.txt", tmp_path / "requirements/blackwell.lock.txt"
    one.write_text("torch==2.6.0 \\\n    --hash=sha256:00\npytest==0.1 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n")
    other.write_text("torch==99.0 \\\n    --hash=sha256:00\nno-such-package==1.0\nnot-here==1 ; sys_platform == 'win32'\n")
    assert compare(tmp_path, "99.0+cu128").lock == "blackwell.lock.txt"
    assert compare(tmp_path, "99.0+cu128").missing == ("no-such-package 1.0",)
    found = compare(tmp_path, "2.6.0+cu124")
    assert (found.lock, found.num_locked, found.missing) == ("runtime.lock.txt", 2, ())
    assert [name.partition(" (")[2] for name in found.different if name.startswith("pytest")] == ["locked: 0.1)"]
    assert compare(tmp_path / "elsewhere", "2.6.0").lock == ""
