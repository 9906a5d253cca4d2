"""What an engine takes on at once, by device."""

from runners.limits import choose_limits


def test_a_large_card_takes_more_at_once_and_a_small_one_leaves_memory_for_keys_and_values() -> None:
    cpu, rtx_5090, h200 = choose_limits("cpu", 0), choose_limits("cuda", 34_000_000_000), choose_limits("cuda", 150_000_000_000)
    assert (cpu.max_running, rtx_5090.max_running, h200.max_running) == (64, 64, 128)
    assert (cpu.max_step_tokens, rtx_5090.max_step_tokens, h200.max_step_tokens) == (512, 512, 2048)
    assert len({one.why for one in (cpu, rtx_5090, h200)}) == 3
