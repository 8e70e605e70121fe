"""The run folder: writing it, and opening models from it."""

from maskwright.runs.checkpoints import ModelCard, open_model, save_model
from maskwright.runs.device import Precision, choose_device, choose_precision
from maskwright.runs.starting import initialize

__all__ = ["ModelCard", "Precision", "choose_device", "choose_precision", "initialize", "open_model", "save_model"]
