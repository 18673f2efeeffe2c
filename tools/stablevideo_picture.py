"""Draws the picture of the page "StableVideo": clips, what words made of their layers, and their key frames.

`python tools/stablevideo_picture.py` writes docs/images/stablevideo.webp. A minute on a laptop.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]  # runs from a checkout that is not installed

from retouch.media.io import write  # noqa: E402 - the path comes first
from retouch.methods.stablevideo.edit import edit  # noqa: E402
from retouch.methods.stablevideo.spec import SPEC  # noqa: E402
from retouch.run import Run  # noqa: E402
from retouch.video import Video  # noqa: E402
from retouch.world import Clip, Scene  # noqa: E402

TO = ROOT / "docs" / "images" / "stablevideo.webp"
FRAMES, SIDE, ZOOM = 8, 64, 2
CLIPS: tuple[tuple[str, int, dict[str, object]], ...] = (
    ("a red ball on sand", 1, {"prompt": "a blue ball on sand"}),
    ("a green car on grass", 5, {"prompt": "a green car on snow", "edits": "background"}),
    (
        "a blue car on sand",
        21,
        {"prompt": "a red car on sand", "background_prompt": "a blue car on snow", "edits": "both"},
    ),
)
"""Caption and seed of each clip, and what is asked of it."""


def main() -> None:
    """Edit, and draw: of each clip the source, the result, and the key frames as the model left them."""
    rows = []
    for caption, seed, asked in CLIPS:
        clip = Clip.of(Scene.of(caption, seed=seed), FRAMES, SIDE)
        with tempfile.TemporaryDirectory() as folder:
            mask = np.repeat((clip.masks[0] > 0) * np.uint8(255), 3, axis=1)
            path = write(Video(mask, clip.video.fps), Path(folder) / "mask")
            params = SPEC.fill({"mask": path, **asked}, preset="laptop")
            made = edit(clip.video, params, Run.alone(Path(folder) / "run"))
            rows += [np.hstack(list(v.frames.transpose(0, 2, 3, 1))) for v in (clip.video, made.video)]
            keys = np.hstack([np.asarray(picture) for picture in made.extras.values()])
            rows.append(np.full_like(rows[-1], 255))
            rows[-1][:, : keys.shape[1]] = keys
    whole = np.vstack(rows).repeat(ZOOM, 0).repeat(ZOOM, 1)
    Image.fromarray(whole).save(TO, quality=80, method=6)


if __name__ == "__main__":
    main()
