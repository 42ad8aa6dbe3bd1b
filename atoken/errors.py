"""The errors that a user can meet; each message is one sentence on what is wrong and what to do.

Every failure caused by what a user passed in (a file, an array, an option, a weight file) is raised as an
``AtokenError``; exceptions of other packages are translated where they arise and do not reach the caller.
"""


class AtokenError(Exception):
    """Base of all errors that AToken raises on purpose; ``str(error)`` is the sentence."""


class MediaError(AtokenError):
    """An image, video or array that cannot be read, is not supported, or is over a limit."""


class TokenFileError(AtokenError):
    """A token file that is damaged, newer than this program, or made by another model."""


class StoreError(AtokenError):
    """A token store that is unfinished, damaged, in use, or made of something else or with other options."""


class CheckpointError(AtokenError):
    """Model weights or a model configuration that are missing, damaged, or do not fit."""


class TensorError(AtokenError, ValueError):
    """A tensor of a shape, dtype, device or range that is not taken."""


class MissingExtraError(AtokenError):
    """An optional package that is not installed; the message holds the install command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'atoken[{extra}]'.")

    def __reduce__(self) -> tuple[object, ...]:
        """For a process that hands it to another: the message is all that is left of the arguments."""
        return MissingExtraError.__new__, (MissingExtraError, *self.args)


class AtokenWarning(UserWarning):
    """A part of the input that the result does not contain, such as an audio track or further pages."""


class ReportError(AtokenError):
    """A log or result that cannot be read, or a report that cannot be written."""
