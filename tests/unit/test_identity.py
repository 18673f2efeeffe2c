"""Identity: equal for what means the same, in every order and process; different for everything else."""

import dataclasses
import os
import subprocess
import sys
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retouch_tint.spec import TintParams

from retouch.identity import file_digest, file_stamp, identity

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.fractions()
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@final
@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    size: int = 1


@final
class Named:
    @property
    def identity(self) -> str:
        return "the weights"


@final
class NamedOnce:
    @cached_property
    def identity(self) -> str:
        return "the weights"


ALL_DIFFERENT: list[object] = [
    None,
    True,
    False,
    0,
    1,
    0.0,
    1.0,
    "",
    "1",
    "True",
    b"1",
    Fraction(1),
    Fraction(1, 2),
    (),
    (1,),
    ((1,),),
    (1, 1),
    ("ab", "c"),
    ("a", "bc"),
    {},
    {"1": 1},
    {1: 1},
    {"a": {"b": 1}},
    {"a": 1, "b": 1},
    Part("a"),
    Part("a", 2),
    np.zeros(3, np.uint8),
    np.zeros(3, np.float32),
    np.zeros((3, 1), np.uint8),
    np.zeros((0, 3)),
    np.zeros((0, 4)),
    np.array(0.0),
    torch.zeros(3),
    torch.zeros(3, dtype=torch.float16),
    torch.zeros(3, dtype=torch.bfloat16),
    torch.zeros(3, dtype=torch.bool),
    torch.tensor(0.0),
    torch.zeros(0, 3),
    {1, 2},
    {2, 3},
    TintParams(),
    TintParams(steps=7),
    Path("nowhere"),
    Path("nowhere else"),
    Named(),
]


def test_no_two_different_values_have_one_identity() -> None:
    found = [identity(value) for value in ALL_DIFFERENT]
    same = [
        (ALL_DIFFERENT[i], ALL_DIFFERENT[found.index(key)])
        for i, key in enumerate(found)
        if found.index(key) != i
    ]
    assert not same


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), plain, max_size=5))
def test_the_order_of_a_mapping_does_not_matter(pairs: dict[str, object]) -> None:
    assert identity(pairs) == identity(dict(reversed(pairs.items())))


@settings(max_examples=50)
@given(plain, plain)
def test_values_have_one_identity_exactly_when_they_are_equal(one: object, other: object) -> None:
    if repr(one) == repr(other):
        assert identity(one) == identity(other)
    else:
        assert identity([one]) != identity([other])


@given(plain)
def test_a_value_in_a_list_is_not_the_value(value: object) -> None:
    assert identity(value) != identity([value])
    assert identity(value) != identity({"value": value})


def test_equal_meanings_are_equal() -> None:
    assert identity([1, 2]) == identity((1, 2)) == identity(range(1, 3))
    assert identity(np.float64(0.5)) == identity(0.5)
    assert identity(np.int32(3)) == identity(3)
    assert identity(frozenset("ab")) == identity({"b", "a"})
    assert identity(TintParams(steps=6)) == identity(TintParams())
    assert identity(Named()) != identity(NamedOnce())
    assert identity(NamedOnce()) == identity(NamedOnce())


def test_an_array_is_its_values_however_it_lies_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 255, (4, 5, 6), np.uint8)
    mapped = np.memmap(tmp_path / "array", np.uint8, "w+", shape=array.shape)
    mapped[:] = array
    assert identity(mapped) == identity(array) == identity(array.swapaxes(0, 2).copy().swapaxes(0, 2))
    tensor = torch.from_numpy(array).float()
    assert identity(tensor.transpose(0, 2).contiguous().transpose(0, 2)) == identity(tensor)
    assert identity(tensor.clone().requires_grad_()) == identity(tensor)


@given(st.integers(0, 119), st.integers(1, 255))
def test_one_byte_of_an_array_changes_its_identity(place: int, change: int) -> None:
    array = np.arange(120, dtype=np.uint8).reshape(2, 3, 20)
    other = array.copy()
    other.flat[place] ^= change
    assert identity(other) != identity(array)


def test_a_file_is_its_content_and_a_folder_its_names_and_contents(tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    (other := tmp_path / "other").mkdir()
    for folder in (one, other):
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")
    assert identity(one) == identity(other)
    assert identity(one / "b") == identity(other / "b") != identity(one / "inner" / "a")
    (other / "b").rename(other / "c")
    assert identity(one) != identity(other)
    (other / "c").rename(other / "b")
    (other / "b").write_bytes(b"c")
    assert identity(one) != identity(other)


def test_names_that_are_no_unicode_have_an_identity(tmp_path: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    missing = identity(strange)
    strange.mkdir()
    (strange / os.fsdecode(b"\xfe")).write_bytes(b"a")
    assert identity(strange) != missing
    assert file_digest(strange) != file_digest(tmp_path)
    assert identity("\udcff") != identity("\udcfe")


@pytest.mark.parametrize(
    "value",
    [object(), len, np.array([object()]), Part, int],
    ids=["object", "function", "array", "class", "type"],
)
def test_what_has_no_identity_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        identity(value)


def test_another_process_with_another_hash_seed_finds_the_same() -> None:
    code = (
        "from retouch.identity import identity\n"
        "print(identity({'b': {2, 3, 1}, 'a': frozenset('xyz'), 'c': [1.5, None, ('d', b'e')]}))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            check=True,
        ).stdout.decode()
        for seed in ("1", "2")
    }
    here = identity({"c": (1.5, None, ["d", b"e"]), "a": set("zyx"), "b": {1, 2, 3}})
    assert told == {here + "\n"}


def test_a_stamp_is_another_one_once_a_file_or_one_in_a_folder_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    file = folder / "0.png"
    file.write_bytes(b"before")
    stamps = [(file_stamp(file), file_stamp(folder))]
    assert stamps == [(file_stamp(file), file_stamp(folder))]
    moment = file.stat().st_mtime_ns
    file.write_bytes(b"after it")
    os.utime(file, ns=(moment, moment))
    stamps.append((file_stamp(file), file_stamp(folder)))
    os.utime(file, ns=(moment, moment + 1))
    stamps.append((file_stamp(file), file_stamp(folder)))
    (folder / "1.png").touch()
    assert file_stamp(folder) not in [whole for _, whole in stamps]
    assert all(len(set(each)) == 3 for each in zip(*stamps, strict=True))
