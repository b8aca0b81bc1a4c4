"""Every fault that the quantization library raises. Knows no user of it and no transport."""

from __future__ import annotations


class QuantError(Exception):
    """Root of the library's faults; the message says what was wrong and what was expected."""


class RecipeError(QuantError):
    """A recipe file is missing, malformed, or asks for what does not exist."""


class CalibrationError(QuantError):
    """Statistics cannot be gathered, or a layer was fed numbers that no grid can hold."""


class ArtifactError(QuantError):
    """An artifact is missing, incomplete, changed, of another model, or of an unknown format."""


class BackendError(QuantError):
    """A backend is unknown, or cannot run what it was given."""
