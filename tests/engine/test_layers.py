"""Layers are read as a person writes them, by number or by relative depth."""

import pytest

from engine.errors import FactError
from engine.layers import layer_ranges, layers_at_depth, parse_layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("", None),
        ("  ", None),
        ("3", [3]),
        ("12-17", [12, 13, 14, 15, 16, 17]),
        (" 12, 15 ,18", [12, 15, 18]),
        ("1-2,5", [1, 2, 5]),
    ],
)
def test_layers_are_read(text, layers):
    assert parse_layers(text) == layers
    assert layers_at_depth(text, 32) == layers


@pytest.mark.parametrize("text", ["a", "1-", "-3", "1,,2", "1.5", "3-1", "²"])
def test_layers_that_make_no_sense_are_named(text):
    with pytest.raises(FactError, match=f"Layers '{text}' were not understood: write numbers such as 12-17"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("text", "count", "layers"),
    [
        ("4-8 of 32", 32, [4, 5, 6, 7, 8]),
        ("4-8 of 32", 30, [4, 5, 6, 7, 8]),
        ("4-8 of 32", 4, [0, 1]),
        ("21 of 32", 30, [20]),
        ("31of32", 4, [3]),
        ("3-5, 8 of 10", 20, [6, 8, 10, 16]),
    ],
)
def test_layers_of_another_depth_are_at_the_same_relative_one(text, count, layers):
    assert layers_at_depth(text, count) == layers


@pytest.mark.parametrize("text", ["4-8 of", "of 32", "4-8 of 0", "8-4 of 32"])
def test_depth_that_makes_no_sense_is_named(text):
    with pytest.raises(FactError, match="were not understood"):
        layers_at_depth(text, 32)


@pytest.mark.parametrize("text", ["40 of 32", "4-40 of 32", "32 of 32"])
def test_layers_beyond_the_depth_are_named(text):
    with pytest.raises(FactError, match=f"Layers '{text}' go beyond a depth of 32: write numbers from 0 to 31"):
        layers_at_depth(text, 4)


@pytest.mark.parametrize(
    ("layers", "text"), [([4, 5, 6, 9], "4-6,9"), ([3], "3"), ([], ""), ([2, 1, 2], "1-2"), ([1, 3], "1,3")]
)
def test_layers_are_written_as_they_are_read(layers, text):
    assert layer_ranges(layers) == text
    assert (parse_layers(text) or []) == sorted(set(layers))
