"""The limits on reading any file."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from atoken.errors import MediaError


@dataclass(frozen=True)
class Limits:
    """How large a file may be before it is refused; every field can be raised by the caller.

    The defaults let through every usual photograph and video and stop decompression bombs before they cost memory.
    """

    max_pixels: int = 64_000_000  # of an image, of one frame, or of one texture
    max_side: int = 16_384  # pixels
    max_seconds: float = 3_600.0  # of a video
    max_frames: int = 216_000  # of a video: one hour at 60 fps
    max_memory: int = 4 << 30  # bytes of frames that a video may take when it is loaded whole
    max_faces: int = 2_000_000  # triangles of a 3D asset, each instance counted
    max_mesh_bytes: int = 300_000_000  # of a 3D file with all that it names, and of the mesh in memory

    def check_size(self, height: int, width: int, what: str) -> None:
        """Refuse an empty frame or one over ``max_pixels`` or ``max_side``. Raises: MediaError."""
        if height < 1 or width < 1:
            raise MediaError(f"{what} has no pixels ({width}x{height}).")
        if max(height, width) > self.max_side or height * width > self.max_pixels:
            raise MediaError(
                f"{what} is {width}x{height}, over the limit of {self.max_pixels:,} pixels and {self.max_side:,} a "
                "side; raise the limit (--limit-pixels or --limit-side of atoken, or Limits in Python) if you trust it."
            )

    def check_frames(self, count: int, name: str) -> None:
        """Refuse a video of more than ``max_frames``. Raises: MediaError."""
        if count > self.max_frames:
            raise MediaError(
                f"{name} has more than {self.max_frames:,} frames; raise the limit (Limits.max_frames), lower fps=, or "
                "read a part with frames=."
            )

    def check_seconds(self, seconds: Fraction, name: str) -> None:
        """Refuse a video that goes on after ``max_seconds``. Raises: MediaError."""
        if seconds > self.max_seconds:
            raise MediaError(
                f"{name} is longer than {self.max_seconds:g} seconds; raise the limit (Limits.max_seconds), or read a "
                "part with frames=."
            )

    def check_faces(self, faces: int, vertices: int, what: str) -> None:
        """Refuse more than ``max_faces``, or three times as many vertices. Raises: MediaError."""
        for name, count, most in (("faces", faces, self.max_faces), ("vertices", vertices, 3 * self.max_faces)):
            if count > most:
                raise MediaError(
                    f"{what} has {count:,} {name}, over the limit of {most:,}; simplify it, or raise Limits.max_faces "
                    "if you trust the file."
                )

    def check_mesh_bytes(self, count: int, what: str) -> None:
        """Refuse more than ``max_mesh_bytes``. Raises: MediaError."""
        if count > self.max_mesh_bytes:
            raise MediaError(
                f"{what} takes {count / 1e6:,.0f} MB, over the limit of {self.max_mesh_bytes / 1e6:,.0f} MB; make it "
                "smaller (fewer faces, smaller textures), or raise Limits.max_mesh_bytes if you trust the file."
            )


DEFAULT_LIMITS = Limits()
