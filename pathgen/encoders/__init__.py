"""Encoders by name: our runs, the public ones, and your own."""

from pathgen.encoders.loading import load_encoder, load_trained
from pathgen.encoders.protocol import PatchEncoder
from pathgen.encoders.scale import mpp_note
from pathgen.encoders.zoo import Published, named, public_encoders

__all__ = [
    "PatchEncoder",
    "Published",
    "load_encoder",
    "load_trained",
    "mpp_note",
    "named",
    "public_encoders",
]
