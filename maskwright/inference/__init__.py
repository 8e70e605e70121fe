"""From weights to use."""

from maskwright.inference.predictor import Model, load
from maskwright.inference.results import Result

__all__ = ["Model", "Result", "load"]
