"""The check of memory: the sum that `runners.device` chooses by, told against what is free. Computes only."""

import torch

from runners.device import compute_dtype, form_of, kv_dtype
from runners.memory import Keeps, Sum, sum_of
from zopilot_gpu.doctor.facts import Facts, Found
from zopilot_gpu.doctor.report import Check
from zopilot_gpu.engine.kv_cache import pool_size
from zopilot_gpu.model.config import MixtralConfig

_NF4_OF_BF16 = 0.28  # what another architecture takes in NF4, of its size on the disk; more or less
_REMEDY = "Take a device with more memory, or free this one"


def memory(facts: Facts) -> Check | None:
    """Weights, KV and work against what is free."""
    found, device = facts.found, facts.device
    if found is None or device is None:
        return None  # the model or the card has failed already
    card = facts.machine.card
    free = card.free_bytes if device.name == "cuda" and card else facts.machine.memory_bytes
    if found.config is None:
        return _of_another(found, free)
    kept = kv_dtype(facts.settings.kv_dtype, device)
    keeps = Keeps(found.absmax, kept.itemsize, is_packed=found.kind == "packed")
    form = form_of(found.config, device, free, keeps)
    itemsize = compute_dtype(device).itemsize
    lean = form.is_lean or (form.name is None and device.name == "cuda" and not found.config.tie_embeddings)
    needed = sum_of(found.config, itemsize, keeps, lean=lean)
    if form.name is None:
        least = needed.total(min(4096, found.config.max_position))
        reason = f"{form.reason[:1].upper()}{form.reason[1:]}."
        return Check("memory", "fail", f"{_gb(free)} free", reason, f"{_REMEDY}: {_gb(least)} have to be free.")
    if form.name == "dequantised":
        full = found.config.num_parameters * itemsize
        needed = Sum(full, needed.kv_bytes_per_token, needed.work_bytes)
    room = max(free - needed.weights_bytes - needed.work_bytes, 0) // needed.kv_bytes_per_token
    if device.name == "cpu":
        room = min(room, pool_size(found.config, kept, torch.device("cpu"), max_tokens=room).num_tokens)
    return _of_ours(facts, found.config, needed, free, room)


def _of_ours(facts: Facts, config: MixtralConfig, needed: Sum, free: int, room: int) -> Check:
    wanted = min(facts.settings.max_context_tokens, config.max_position)
    value = (
        f"{_gb(needed.weights_bytes)} weights + {_gb(needed.kv_bytes_per_token * wanted)} KV of {wanted:,} tokens + "
        f"{_gb(needed.work_bytes)} to work; {_gb(free)} free"
    )
    longest = min(room, config.max_position)
    if room < wanted:
        reason = f"The longest context that fits has {longest:,} tokens, not the {wanted:,} of ZOPILOT_GPU_MAX_CONTEXT_TOKENS."
        remedy = f"Set it to {longest}, so that nobody counts on more; or take a device with more memory."
        return Check("memory", "warn", value, reason, remedy)
    reason = f"The longest context that fits has {longest:,} tokens; there is room for {room // wanted:,} times {wanted:,}."
    return Check("memory", "ok", value, reason)


def _of_another(found: Found, free: int) -> Check:
    needed = int(found.num_bytes * _NF4_OF_BF16)
    value = f"about {_gb(needed)} in NF4; {_gb(free)} free"
    if needed > free:
        return Check("memory", "fail", value, "The weights do not fit.", f"{_REMEDY}.")
    return Check("memory", "ok", value, "The plain backend runs one request at a time, and needs little more than its weights.")


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
