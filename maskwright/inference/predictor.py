"""A trained model, ready for images."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from maskwright.formats.dataset import Categories
from maskwright.formats.images import read_image
from maskwright.inference.results import Result
from maskwright.layers.norms import fold_frozen_norms
from maskwright.layers.precision import cast_weights
from maskwright.runs import ModelCard, choose_device, choose_precision, open_model
from maskwright.structures import ImageBatch, Instances
from maskwright.systems import System

Source = str | Path | Image.Image | npt.NDArray[np.uint8]


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    system: str | None = None,
    proposals: str | Path | None = None,
    **arguments: Any,
) -> "Model":
    """Open a run folder or a weights file; no code from it is ever run.

    Args:
        path: a run folder (its best weights are used), a folder with model.json, or a .safetensors file.
        device: "auto", "cpu", "cuda", …
        precision: of the network; masks and boxes are always computed in float32.
        system: a system from outside the package, "package.module:builder", that may be imported if the run is of it.
        proposals: the run of a proposal system, for a detector that was trained on files of proposals.
        arguments: of the system's builder, in place of the saved ones, for example num_proposals=2000.

    Raises:
        ValueError: nothing there, not a model of maskwright, or an argument the system does not have.
    """
    return load_with(path, arguments, device=device, precision=precision, system=system, proposals=proposals)


def load_with(
    path: str | Path,
    arguments: Mapping[str, Any],
    *,
    device: str,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    system: str | None = None,
    proposals: str | Path | None = None,
) -> "Model":
    """The same, for arguments by whatever name."""
    proposer = None if proposals is None else Path(proposals)
    network, card = open_model(Path(path), arguments, outside=system, proposer=proposer)
    return Model(network, card, device=device, precision=precision)


class Model:
    """A system with its classes, on a device, made fast for prediction: norms folded, weights converted once.

    The system it is given is changed for good and cannot be trained any more.
    """

    def __init__(
        self, system: System, card: ModelCard, *, device: str, precision: Literal["auto", "float32", "bfloat16"]
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.system = system
        self.card = card
        system.eval()
        fold_frozen_norms(cast(nn.Module, system))
        if self.precision.name == "bfloat16":
            cast_weights(cast(nn.Module, system), torch.bfloat16)
        cast(nn.Module, system).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __repr__(self) -> str:
        return f"Model({self.card.system}, {len(self.names)} classes, {self.precision.name} on {self.device})"

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.categories.names

    @property
    def categories(self) -> Categories:
        """Class names with the ids they had in the training data."""
        return self.card.categories

    @overload
    def predict(self, source: Source, *, threshold: float = ..., max_detections: int | None = ...) -> Result: ...
    @overload
    def predict(
        self, source: list[Source] | tuple[Source, ...], *, threshold: float = ..., max_detections: int | None = ...
    ) -> list[Result]: ...
    def predict(
        self, source: Source | list[Source] | tuple[Source, ...], *, threshold: float = 0.5, max_detections: int | None = None
    ) -> Result | list[Result]:
        """Find objects in an image, or in each of a list.

        Args:
            source: a path, a Pillow image, an RGB uint8 array (H, W, 3), or a list of these.
            threshold: objects with lower scores are left out; systems drop what is hopeless (Mask R-CNN: 0.05) by themselves.
            max_detections: objects of an image at most; by default what the model was built with.

        Raises:
            ValueError: an image that cannot be read, by name.
        """
        if isinstance(source, (list, tuple)):
            return list(self.stream(source, threshold=threshold, max_detections=max_detections))
        return next(self.stream([source], threshold=threshold, max_detections=max_detections))

    def stream(
        self, sources: Iterable[Source], *, threshold: float = 0.5, max_detections: int | None = None
    ) -> Iterator[Result]:
        """Results one by one, for more images than memory holds results."""
        if not 0 <= threshold <= 1:
            raise ValueError(f"got threshold {threshold}, expected a score between 0 and 1")
        if max_detections is not None and max_detections < 1:
            raise ValueError(f"got max_detections {max_detections}, expected at least 1")
        for source in sources:
            pixels = self._read(source)
            instances = self.detect(self._batch(pixels), max_detections=max_detections)[0].to("cpu")
            assert instances.scores is not None
            kept = instances[instances.scores >= threshold]
            yield Result(
                kept, self.categories, source if isinstance(source, (str, Path)) else pixels, self.system.input.intensity
            )

    def detect(self, images: ImageBatch, *, max_detections: int | None = None) -> list[Instances]:
        """All detections of a batch, original frame, whatever their scores."""
        usual = self.system.max_detections
        self.system.max_detections = usual if max_detections is None else max_detections
        try:
            with torch.inference_mode(), self.precision.autocast():
                return self.system.predict(images)
        finally:
            self.system.max_detections = usual

    def _read(self, source: Source) -> npt.NDArray[np.uint8]:
        if isinstance(source, np.ndarray):
            if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or 0 in source.shape:
                raise ValueError(f"got an array {source.shape} of {source.dtype}, expected RGB uint8 (H, W, 3)")
            return source
        return read_image(source, self.system.input.intensity)

    def _batch(self, pixels: npt.NDArray[np.uint8]) -> ImageBatch:
        spec = self.system.input
        image = spec.to_pixels(torch.from_numpy(np.ascontiguousarray(pixels)))
        batch = ImageBatch.collate([image], original_sizes=[(pixels.shape[0], pixels.shape[1])], size_divisor=spec.size_divisor)
        return replace(batch, pixels=batch.pixels.to(memory_format=torch.channels_last)).to(self.device)
