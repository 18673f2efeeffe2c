"""Arithmetic whose last bit is the same on every machine, and the random numbers built on it.

IEEE 754 fixes the result of `+ - * /` and of the square root to the last bit; it fixes no sine, no
exponential and no order of summation. Everything the world draws goes through these functions, so that a
scene's pixels do not depend on the processor, the C library or NumPy's vector code. Angles are in turns: a
whole circle is 1.
"""

from math import floor
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Float, Shaped, UInt64

from retouch.errors import RequestError

Plane: TypeAlias = Float[np.ndarray, "h w"]

# Taylor coefficients of sin(2 pi x) in x, x^3, ... x^13: off by less than 1e-9 for |x| <= 1/4.
_SINE = (
    6.283185307179586,
    -41.341702240399755,
    81.60524927607504,
    -76.70585975306136,
    42.05869394489765,
    -15.094642576822984,
    3.819952584848281,
)


def sine(turns: float) -> float:
    """Return the sine of an angle in turns."""
    x = turns - floor(turns + 0.5)
    if x > 0.25:
        x = 0.5 - x
    elif x < -0.25:
        x = -0.5 - x
    square = x * x
    total = _SINE[-1]
    for factor in _SINE[-2::-1]:
        total = total * square + factor
    return total * x


def cosine(turns: float) -> float:
    """Return the cosine of an angle in turns."""
    return sine(turns + 0.25)


def sine_waves(turns: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return the sine of every angle in an array of turns."""
    x = turns - np.floor(turns + 0.5)
    x = np.where(x > 0.25, 0.5 - x, np.where(x < -0.25, -0.5 - x, x))
    square = x * x
    total = np.full_like(x, _SINE[-1])
    for factor in _SINE[-2::-1]:
        total = total * square + x.dtype.type(factor)
    result: Float[np.ndarray, "*shape"] = total * x
    return result


def smooth_step(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return the curve from 0 to 1 that is level at both ends, for x in [0, 1]."""
    curve: Float[np.ndarray, "*shape"] = x * x * (3 - 2 * x)
    return curve


def clamp_unit(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """`x` held within [0, 1]."""
    held: Float[np.ndarray, "*shape"] = np.minimum(np.maximum(x, 0), 1)
    return held


def to_bytes(x: Float[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Return values in [0, 1] as bytes, rounded half up."""
    levels: Float[np.ndarray, "*shape"] = clamp_unit(x) * x.dtype.type(255) + x.dtype.type(0.5)
    rounded: Shaped[np.ndarray, "*shape"] = levels.astype(np.uint8)
    return rounded


def blend_over(
    top: Shaped[np.ndarray, "3 h w"], alpha: Shaped[np.ndarray, "h w"], below: Shaped[np.ndarray, "3 h w"]
) -> Shaped[np.ndarray, "3 h w"]:
    """Return the bytes of `top` laid over bytes of `below`, in whole numbers, rounded to nearest."""
    a = alpha.astype(np.uint16)
    total: Shaped[np.ndarray, "3 h w"] = top * a + below * (255 - a) + np.uint16(128)
    laid: Shaped[np.ndarray, "3 h w"] = np.right_shift(total + np.right_shift(total, 8), 8).astype(
        np.uint8
    )  # / 255
    return laid


def random_words(count: int, *key: int) -> UInt64[np.ndarray, " n"]:
    """`count` random 64-bit numbers of the stream that `key` (one or two whole numbers) names."""
    names = np.array([*key, 0][:2], dtype=np.uint64)
    return np.random.Philox(key=names).random_raw(count)


def random_uniform(count: int, *key: int) -> Float[np.ndarray, " n"]:
    """`count` random numbers in [0, 1) of the stream that `key` names, the top 53 bits of each raw number."""
    return (random_words(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@final
class Dice:
    """Random numbers drawn one after another; the same seed and order give the same numbers."""

    def __init__(self, seed: int, stream: int, count: int) -> None:
        """Throw `count` numbers at once; asking for more is an error.

        Raises:
            RequestError: the seed is out of bounds.
        """
        if not 0 <= seed < 2**64:
            raise RequestError(f"seed is {seed}; it must be from 0 to 2**64 - 1", hint="try --seed 0")
        self._thrown = iter(random_uniform(count, seed, stream).tolist())

    def between(self, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""
        return low + (high - low) * float(next(self._thrown))

    def pick(self, count: int) -> int:
        """Return a whole number from 0 to `count` - 1."""
        return min(int(float(next(self._thrown)) * count), count - 1)

    def chance(self, share: float) -> bool:
        """Return True in `share` of all throws."""
        return float(next(self._thrown)) < share
