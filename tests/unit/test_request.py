"""A request: the same after a trip through its file; what no request can say is told."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retouch_tint.spec import TintParams

from retouch.compute import Compute
from retouch.errors import ParamsError, RequestError
from retouch.request import EditRequest, Output

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
requests = st.builds(
    EditRequest,
    video=st.sampled_from([Path("/clips/a b.mp4"), Path("frames/ü*.png")]),
    method=st.sampled_from(["tint", "paint"]),
    params=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=10), values, max_size=4),
    seed=st.integers(0, 2**63 - 1),
    compute=st.sampled_from([Compute(), Compute(device="cpu", memory="2GB", deterministic=False)]),
    output=st.builds(
        Output, crf=st.none() | st.integers(0, 63), lossless=st.booleans(), bits=st.sampled_from([8, 10])
    ),
    out=st.sampled_from([None, Path("/out/ß.mp4")]),
)


@settings(max_examples=60)
@given(requests)
def test_a_request_is_equal_after_a_trip_through_json(request: EditRequest) -> None:
    again = EditRequest.from_json(request.as_json())
    assert again == request
    assert again.as_json() == request.as_json()


def test_a_request_is_read_from_its_file(tmp_path: Path) -> None:
    request = EditRequest(video=Path("ü.mp4"), method="tint", params={"steps": 3}, seed=5)
    (tmp_path / "request.json").write_text(request.as_json(), encoding="utf-8")
    assert EditRequest.read(tmp_path / "request.json") == request
    assert request.filled() == TintParams(steps=3)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "the request is no JSON", "--dry-run"),
        ('{"video": "a"', "the request is no JSON", "--dry-run"),
        ("[]", "it must be an object", ""),
        ('{"method": "tint"}', "video is missing", "The clip"),
        ('{"video": "a", "method": "tint", "sed": 1}', "there is no parameter 'sed'", "did you mean seed?"),
        ('{"video": "a", "method": "tint", "seed": -1}', "seed is -1; it must be greater", "Where"),
        ('{"video": "a", "method": ""}', "method is ''; string should have", "The method"),
        (
            '{"video": "a", "method": "tint", "compute": {"device": "x"}}',
            "compute.device is 'x'; it must",
            "cuda",
        ),
    ],
)
def test_what_no_request_can_say_is_told(text: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        EditRequest.from_json(text)
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        EditRequest.read(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="cannot be read") as caught:
        EditRequest.read(tmp_path / "bytes.json")
    assert caught.value.hint == "give a request.json of an earlier run"


def test_parameters_are_checked_by_their_method() -> None:
    with pytest.raises(ParamsError, match="steps is 0"):
        EditRequest(video=Path("a"), method="tint", params={"steps": 0}).filled()
    with pytest.raises(ParamsError, match="there is no method 'tnt'") as caught:
        EditRequest(video=Path("a"), method="tnt").filled()
    assert caught.value.hint == "did you mean tint?"
