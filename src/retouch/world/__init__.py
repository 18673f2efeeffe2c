"""The procedural world: scenes from a seed or a caption, drawn with the truth about every pixel.

What belongs here is what can be known exactly about made-up clips. Nothing here needs a network or a GPU.
"""

from retouch.world.faces import (
    LANDMARKS,
    PARTS,
    Expression,
    FaceClip,
    Identity,
    Liveliness,
    Portrait,
    face_landmarks,
    face_picture,
    sample_identity,
    sample_motion,
)
from retouch.world.render import film, paint_actor, picture, planes
from retouch.world.scene import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    PATTERNS,
    STYLES,
    WORLD_VERSION,
    Actor,
    Camera,
    Motion,
    Scene,
    Variety,
)
from retouch.world.truth import Change, Clip, ClipLayer, edited_clip, reachable_pixels

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "LANDMARKS",
    "OBJECTS",
    "PARTS",
    "PATTERNS",
    "STYLES",
    "WORLD_VERSION",
    "Actor",
    "Camera",
    "Change",
    "Clip",
    "ClipLayer",
    "Expression",
    "FaceClip",
    "Identity",
    "Liveliness",
    "Motion",
    "Portrait",
    "Scene",
    "Variety",
    "edited_clip",
    "face_landmarks",
    "face_picture",
    "film",
    "paint_actor",
    "picture",
    "planes",
    "reachable_pixels",
    "sample_identity",
    "sample_motion",
]
