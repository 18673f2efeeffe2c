"""Where and how a request is computed: devices, precision, memory."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retouch.compute import Compute, as_bytes, free_memory, heeds_alignment, in_words
from retouch.errors import DeviceUnavailable, ParamsError
from retouch.fields import parse


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1k", 1024), ("8GB", 2**33), ("1.5 gib", 3 * 2**29), (" 2 tb ", 2**41)],
)
def test_amounts_of_memory_are_read(text: str, size: int) -> None:
    assert as_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 XB", "1e9", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount of memory"):
        as_bytes(text)


@given(st.integers(0, 2**45))
def test_an_amount_in_words_is_near_the_amount(size: int) -> None:
    # One decimal of the unit is shown, so half a tenth of it may be lost.
    words = in_words(size)
    unit = as_bytes("1" + words.split()[1].removesuffix("ytes"))
    assert abs(as_bytes(words.replace("bytes", "b")) - size) <= 0.05 * unit + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu'; it must be auto, cpu, cuda, cuda:N or mps"),
        ({"memory": "8 XB"}, "memory is '8 XB'; '8 XB' is no amount of memory; write for example 8GB"),
        ({"dtype": "half"}, "dtype is 'half'; it must be 'auto', "),
    ],
    ids=str,
)
def test_faults_are_told_in_words(given: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse(Compute, given)
    assert str(caught.value).startswith(message)


def test_compute_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Compute().device = "cpu"  # type: ignore[misc]


def test_the_processor_is_always_there_and_computes_in_full_precision() -> None:
    assert Compute(device="cpu").torch_device() == torch.device("cpu")
    assert Compute(device="cpu").torch_dtype() == torch.float32
    assert Compute(device="cpu", dtype="bfloat16").torch_dtype() == torch.bfloat16


def test_a_device_that_is_not_there_is_told_with_a_way_out() -> None:
    with pytest.raises(DeviceUnavailable, match="there is no device cuda:99 here") as caught:
        Compute(device="cuda:99").torch_device()
    assert caught.value.hint == "try --device cpu"


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_torch_is_settled_for_the_block_only_also_after_an_error(*, wanted: bool, before: bool) -> None:
    torch.use_deterministic_algorithms(before)
    try:
        with suppress(KeyError), Compute(deterministic=wanted).repeatable():
            assert torch.are_deterministic_algorithms_enabled() == wanted
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled() == before
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(mode=False)


def test_the_threads_of_a_request_are_taken_for_the_block_only() -> None:
    before = torch.get_num_threads()
    with Compute(threads=before + 2).repeatable():
        assert torch.get_num_threads() == before + 2
        assert Compute().here().threads == before + 2
        with Compute().repeatable():
            assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before
    assert Compute(threads=5).here() == Compute(threads=5)


USED_BEFORE = "import torch; torch.ones(64, 64) @ torch.ones(64, 64); import retouch"
ASKED = "; from retouch.compute import heeds_alignment; print(os.environ['MKL_CBWR'], heeds_alignment())"


@pytest.mark.skipif(not torch._C.has_mkl, reason="only MKL's kernels go by alignment")
@pytest.mark.parametrize(
    ("begun", "own", "told"),
    [
        ("import retouch", None, "AUTO False"),
        ("import torch; import retouch", None, "AUTO False"),
        ("import retouch", "COMPATIBLE", "COMPATIBLE False"),
        ("import retouch", "", " True"),
        (USED_BEFORE, None, "AUTO True"),
    ],
)
def test_matrices_are_multiplied_alike_wherever_they_lie(begun: str, own: str | None, told: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    env |= {} if own is None else {"MKL_CBWR": own}
    code = f"import os; {begun}{ASKED}"
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{told}\n"


def test_the_tests_themselves_are_repeatable() -> None:
    assert not heeds_alignment()


def test_free_memory_is_some_and_the_budget_below_it() -> None:
    assert 0 < Compute().budget() < 2**45
    assert free_memory() > 0
