"""Kernels are told apart by their names, and time in which several ran is counted once."""

import time

import pytest
import torch

from zopilot_gpu.bench.gpu.parts_of_step import added, part_of, parts_of_step


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("gate_up_kernel", "experts"),
        ("down_kernel", "experts"),
        ("wgmma_up_kernel", "experts"),
        ("wgmma_down_kernel", "experts"),
        ("dequantise_kernel", "experts"),
        ("dense_kernel", "QKV and O"),
        ("attend_kernel", "attention"),
        ("merge_kernel", "attention"),
        ("rotate_kernel", "rotary and KV write"),
        ("add_norm_kernel", "norms and router"),
        ("route_kernel", "routing"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "head"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16>", "head"),
        ("void at::native::reduce_kernel<512, 1, ArgMaxOps<float>>", "sampling"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("void at::native::vectorized_gather_kernel<16, long>", "other"),
    ],
)
def test_a_kernel_is_of_a_part(kernel: str, part: str) -> None:
    assert part_of(kernel) == part


def test_what_overlaps_is_counted_once() -> None:
    spans = [("a", 0.0, 10.0), ("b", 5.0, 12.0), ("c", 6.0, 7.0), ("d", 20.0, 21.0)]
    assert list(added(spans)) == [("a", 10), ("b", 2), ("c", 0), ("d", 1)]


def test_a_step_that_only_waits_is_a_gap() -> None:
    found = parts_of_step(lambda: time.sleep(0.001), 2, 1000.0, torch.device("cpu"))
    assert found["busy_us"] + found["gaps_us"] == pytest.approx(1000, abs=1)
