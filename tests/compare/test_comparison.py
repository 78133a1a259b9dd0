import math

import pytest

from lit_ddpm.compare import Value
from lit_ddpm.compare.comparison import Comparison, text_of


def test_leaders_of_a_column_are_significant():
    def with_seeds(count):
        return Comparison([], {"a": [], "b": []}, {}, count, {})

    clear = {"a": Value(1.0, 0.1), "b": Value(2.0, 0.1)}
    assert with_seeds(3).leaders("bits/dim", clear) == {"a"}
    assert with_seeds(3).leaders("is_digits", clear) == {"b"}
    assert with_seeds(2).leaders("bits/dim", clear) == set()  # the error of two seeds is unreliable
    assert with_seeds(3).leaders("images/s", clear) == set()
    tie = clear | {"c": Value(1.1, 0.1)}
    assert with_seeds(3).leaders("bits/dim", tie) == {"a", "c"}
    assert with_seeds(1).leaders("fid", {"a": Value(1.0, math.nan), "b": Value(2.0, math.nan)}) == set()
    assert with_seeds(3).leaders("prior", {"a": Value(1.0, 0.0), "b": Value(1.0, 0.0)}) == set()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(1.83742, 0.0128), "1.837 ± 0.013"),
        (Value(12345.6, 210.0), "12,346 ± 210"),
        (Value(0.0530026, 0.0000161), "0.053003 ± 0.000016"),
        (Value(12.3591, math.nan), "12.36"),
        (None, "—"),
    ],
)
def test_a_value_is_printed_to_two_digits_of_its_error(value, text):
    assert text_of(value) == text
