"""The calculator is exact, and nothing that a policy writes takes long or runs."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlspec.rlvr.tools.calculator import calculator

NUMBERS = st.integers(-999, 999)


@given(NUMBERS, NUMBERS, st.sampled_from("+-*/"))
def test_it_computes_exactly(left: int, right: int, sign: str) -> None:
    if sign == "/" and right == 0:
        return
    value = {"+": left + right, "-": left - right, "*": left * right, "/": Fraction(left, right or 1)}[sign]
    assert calculator(f"({left}) {sign} ({right})") == str(value)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2**10", "1024"), ("2**-2", "1/4"), ("7//2+7%4", "6"), ("0.1+0.2", "3/10"), ("-(3)", "-3"), ("12*(3+4)", "84")],
)
def test_it_knows_powers_remainders_decimals_and_parentheses(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9", "too large"),
        ("2**999999999", "too large"),
        ("9**999*9**999", "too large"),
        ("(" * 100 + "1" + ")" * 100, "longer than|not an arithmetic"),
        ("1" * 201, "longer"),
        ("__import__('os').system('true')", "only numbers"),
        ("(1).__class__", "only numbers"),
        ("True", "only numbers"),
        ("'a'*9", "only numbers"),
        ("1/0", "division by zero"),
        ("1%0", "division by zero"),
        ("0**-1", "division by zero"),
        ("4**0.5", "only whole exponents"),
        ("1e999", "Fraction"),
        ("", "not an arithmetic"),
        ("1+", "not an arithmetic"),
        ("1\x00", "not an arithmetic|null"),
        ("lambda: 1", "only numbers"),
    ],
)
def test_what_it_cannot_or_must_not_compute_is_an_error_for_the_policy_to_read(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        print(calculator(expression), len(expression))
