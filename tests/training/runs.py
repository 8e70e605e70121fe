"""What tests of training share."""

from safetensors.torch import load_file


class Killed(BaseException):
    """In the middle of something."""


def weights(run, folder="last"):
    """Of the kept model."""
    return load_file(run / folder / "weights.safetensors")
