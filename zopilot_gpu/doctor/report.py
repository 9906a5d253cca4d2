"""What a check says. Knows verdicts; refuses to know what is checked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warn", "fail"]
_ORDER: tuple[Verdict, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Check:
    """`value` was measured, `reason` is what it means, `remedy` what to do; it is empty where nothing is to be done."""

    name: str
    verdict: Verdict
    value: str
    reason: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """Reason and remedy."""
        return f"{self.reason} {self.remedy}".strip()


def worst(checks: Sequence[Check]) -> Verdict:
    """`fail` where one failed, else `warn` where one warns."""
    return max((check.verdict for check in checks), key=_ORDER.index, default="ok")


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """For scripts, and for `/health`."""
    return {"verdict": worst(checks), "checks": [asdict(check) for check in checks]}
