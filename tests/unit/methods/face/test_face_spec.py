import pytest

from retouch.errors import ParamsError
from retouch.methods.face.spec import SPEC, FaceParams, strength_at, strength_curve


def test_a_strength_goes_straight_from_mark_to_mark_and_is_level_beyond() -> None:
    curve = strength_curve("glasses=10:0,20:1")[1]
    assert [strength_at(curve, frame) for frame in (0, 10, 15, 20, 99)] == [0, 0, 0.5, 1, 1]
    assert strength_at(strength_curve("glasses=0.7")[1], 50) == 0.7


@pytest.mark.parametrize("text", ["glasses", "glasses=", "=1", "glasses=much", "glasses=1,2", "glasses=a:1"])
def test_what_is_no_strength_is_refused(text: str) -> None:
    with pytest.raises(ParamsError):
        SPEC.fill({"attribute": (text,)})


def test_several_attributes_have_strengths_of_their_own() -> None:
    params = SPEC.fill({"attribute": ("glasses=1", "beard=0:0,4:1")})
    assert isinstance(params, FaceParams)
    assert params.strengths(2) == {"glasses": 1.0, "beard": 0.5}


def test_nothing_to_change_is_refused() -> None:
    with pytest.raises(ParamsError, match="nothing is to be changed"):
        SPEC.fill({})
