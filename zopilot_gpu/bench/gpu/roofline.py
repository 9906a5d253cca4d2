"""The picture of a run: a layer of experts under the card's roof, and decode by batch beside its floor. Knows matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopilot_gpu.bench.gpu.kernels import WEIGHT_BYTES
from zopilot_gpu.bench.gpu.peers import DECODE_AT_ONE, MARLIN_MS, TARGETS
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.bench.plot import new_figure, save
from zopilot_gpu.model.config import MixtralConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(report: Mapping[str, Any], sizes: Sizes, path: Path) -> None:
    """Writes the SVG; what a run does not have is left out."""
    figure, (roof, batches) = new_figure(2)
    best = report.get("ceilings")
    if best:
        _roof(roof, best, report.get("kernels", {}))
        _batches(batches, best, report.get("model", {}).get("decode", {}), sizes)
    figure.suptitle(f"{report['machine']['card']}, {report['date'][:10]}")
    save(figure, path)


def _roof(panel: "Axes", best: Mapping[str, float], timings: Mapping[str, Any]) -> None:
    """Operations a second by operations a byte, both as counted; a point has the time that was measured."""
    ridge = best["flops"] / best["bytes_per_s"]
    reach = [ridge / 200, ridge, ridge * 20]
    panel.plot(
        reach, [min(x * best["bytes_per_s"], best["flops"]) / 1e12 for x in reach], color="black", label="roof, measured"
    )
    points = {int(timing["size"][2:]): timing for timing in timings.values() if timing["part"] == "experts"}
    place = {tokens: timing["num_flops"] / timing["num_bytes"] for tokens, timing in points.items()}
    panel.plot(
        list(place.values()), [timing["num_flops"] / timing["ms"] / 1e9 for timing in points.values()], "o-", label="ours"
    )
    theirs = {tokens: ms for tokens, ms in MARLIN_MS.items() if tokens in points}
    if theirs:
        heights = [points[tokens]["num_flops"] / ms / 1e9 for tokens, ms in theirs.items()]
        panel.plot([place[tokens] for tokens in theirs], heights, "x--", label="Marlin, on an H100")
    for tokens, timing in points.items():
        panel.annotate(str(tokens), (place[tokens], timing["num_flops"] / timing["ms"] / 1e9), fontsize=7)
    panel.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s", title="a layer of experts, by tokens")
    panel.legend(fontsize=7)


def _batches(panel: "Axes", best: Mapping[str, float], decode: Mapping[str, Any], sizes: Sizes) -> None:
    """Tokens a second by batch."""
    ladder = [1, 2, 4, 8, 16, 32, 64, 128]
    floor = [size / step_floor_s(sizes.config, size, sizes.context, best["bytes_per_s"]) for size in ladder]
    panel.plot(ladder, floor, color="black", label="floor of bandwidth")
    ours = {int(size): found["tokens_per_s"] for size, found in decode.items() if size.isdigit()}
    if ours:
        panel.plot(list(ours), list(ours.values()), "o-", label="ours, through the engine")
    aims = {int(target.where[2]): target.value for target in TARGETS if target.where[:2] == ("model", "decode")}
    panel.plot(list(aims), list(aims.values()), "_", markersize=12, label="targets")
    for number, (who, value) in enumerate(DECODE_AT_ONE.items()):
        panel.plot([1], [value], marker="^x+d"[number % 4], linestyle="", label=who)
    panel.set(xscale="log", yscale="log", xlabel="sequences", ylabel="tokens/s", title=f"decode, context {sizes.context}")
    panel.legend(fontsize=6)


def step_floor_s(config: MixtralConfig, size: int, context: int, bytes_per_s: float) -> float:
    """Seconds in which a decode step's bytes can be read: weights of the experts that are hit, the rest, keys and values."""
    chosen = config.num_experts_per_token / config.num_experts
    hit = config.num_experts * (1 - (1 - chosen) ** size)  # as many as evenly drawn tokens hit
    expert = 3 * config.hidden_size * config.intermediate_size
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.hidden_size
    weights = config.num_layers * (hit * expert + attention) * WEIGHT_BYTES[False]
    head = 2 * config.vocab_size * config.hidden_size
    return (weights + head + size * context * config.kv_bytes_per_token()) / bytes_per_s
