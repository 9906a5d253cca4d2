"""Holds the error tree to the table in its module's docstring, and what a caller sees to the fixed sentence."""

import re

import pytest

from zopilot_gpu import errors
from zopilot_gpu.errors import InvalidRequest, ServiceError, in_a_line

_ROW = re.compile(
    r"[├└]── (?P<name>\w+) +(?P<code>\w+|\(given\)) +(?P<status>\d{3}[\d ·]*)(?P<retry>\+ Retry-After)?$", re.MULTILINE
)
GIVEN = "(given)"


def documented() -> dict[str, tuple[str, str]]:
    """Name -> (code, status) of the docstring's table."""
    return {row["name"]: (row["code"], row["status"].strip()) for row in _ROW.finditer(str(errors.__doc__))}


def every_error(parent: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """Those of this module; a package may have kinds of its own below them."""
    children = [child for child in parent.__subclasses__() if child.__module__ == errors.__name__]
    return [kind for child in children for kind in (child, *every_error(child))]


def test_the_table_lists_exactly_the_tree() -> None:
    assert sorted(documented()) == sorted(kind.__name__ for kind in every_error())


@pytest.mark.parametrize("kind", [kind for kind in every_error() if kind is not InvalidRequest])
def test_code_and_status_are_the_documented_ones(kind: type[ServiceError]) -> None:
    assert documented()[kind.__name__] == (kind.code, str(kind.status))


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in every_error() if kind is not InvalidRequest]
    assert len(codes) == len(set(codes))


def test_an_invalid_request_carries_what_it_is_given() -> None:
    error = InvalidRequest(413, "body_too_large", "Too large.")
    assert (error.status, error.code, error.message, error.detail, error.retry_after_s) == (
        413,
        "body_too_large",
        "Too large.",
        None,
        None,
    )
    assert documented()["InvalidRequest"][0] == GIVEN


@pytest.mark.parametrize("kind", [kind for kind in every_error() if kind is not InvalidRequest])
def test_a_detail_is_for_the_operator_and_leaves_the_callers_sentence_alone(kind: type[ServiceError]) -> None:
    error = kind(detail="/mnt/model is broken", retry_after_s=7)
    assert error.message == kind.message
    assert str(error) == error.detail == "/mnt/model is broken"
    assert error.retry_after_s == 7
    assert str(kind()) == kind.message


def test_what_a_library_says_is_cut_to_its_first_sentence() -> None:
    assert in_a_line(ValueError("\n  It broke. Here is how\nto mend it.")) == "ValueError: It broke"
    assert in_a_line(KeyError()) == "KeyError"
    assert len(in_a_line(RuntimeError("x" * 1000))) < 350
