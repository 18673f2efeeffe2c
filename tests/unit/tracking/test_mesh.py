"""The mesh of offsets by itself."""

import numpy as np

from retouch.tracking.mesh import LEAN, STIFF, solve_offsets


def test_what_a_few_places_tell_reaches_a_whole_stiff_mesh() -> None:
    told = np.zeros((90, 120), np.float32)
    told[20:26, 30:36] = told[60:66, 90:96] = told[70:76, 10:16] = 1
    normal = np.multiply.outer(told, np.array([1, 0, 1], np.float32))
    moved = np.array([3, -2], np.float32)
    found = solve_offsets(np.zeros((90, 120, 2), np.float32), normal, told[..., None] * moved, *STIFF)
    # Solved on the fine mesh alone, the same steps leave most of it where it was: 2.5 pixels off.
    assert np.abs(found - moved).mean() < 0.5


def test_offsets_solve_their_equations() -> None:
    rng = np.random.default_rng(3)
    height, width = 5, 6
    normal = np.abs(rng.standard_normal((height, width, 3))).astype(np.float32)
    normal[..., ::2] += 1
    rhs = rng.standard_normal((height, width, 2)).astype(np.float32)
    bend, crease = 0.7, 1e6
    found = solve_offsets(np.zeros_like(rhs), normal, rhs, bend, crease)
    # The energy, term by term, as a dense matrix: every row is a difference of nodes.
    rows: list[tuple[dict[tuple[int, int], float], float]] = []
    for y in range(height):
        for x in range(width):
            if 0 < x < width - 1:
                rows.append(({(y, x - 1): 1, (y, x): -2, (y, x + 1): 1}, bend))
            if 0 < y < height - 1:
                rows.append(({(y - 1, x): 1, (y, x): -2, (y + 1, x): 1}, bend))
            if y and x:
                rows.append(({(y, x): 1, (y, x - 1): -1, (y - 1, x): -1, (y - 1, x - 1): 1}, 2 * bend))
            if x:
                rows.append(({(y, x): 1, (y, x - 1): -1}, LEAN))
            if y:
                rows.append(({(y, x): 1, (y - 1, x): -1}, LEAN))
    dense = np.zeros((height * width * 2,) * 2)
    for terms, weight in rows:
        for axis in (0, 1):
            row = np.zeros((height, width, 2))
            for node, value in terms.items():
                row[(*node, axis)] = value
            dense += weight * np.outer(row.ravel(), row.ravel())
    for i, (a, b, c) in enumerate(normal.reshape(-1, 3)):
        dense[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] += [[a, b], [b, c]]
    exact = np.linalg.solve(dense, rhs.ravel()).reshape(rhs.shape)
    np.testing.assert_allclose(found, exact, atol=1e-3)
