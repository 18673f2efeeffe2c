"""The doors of this package: clips and pictures in and out."""

from retouch.media.encoding import Codec, Encoding
from retouch.media.pictures import read_picture, write_picture
from retouch.media.reading import read, read_frame
from retouch.media.writing import Writer, write

__all__ = [
    "Codec",
    "Encoding",
    "Writer",
    "read",
    "read_frame",
    "read_picture",
    "write",
    "write_picture",
]
