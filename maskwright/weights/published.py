"""Weights that torchvision publishes of whole systems: which there are, and how their files are had.

A file lies in torch.hub's folder, where torchvision looks for it, too; what is not there is downloaded. Whoever put it there,
it is compared with the hash in its name before anything reads it.
"""

import hashlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)


class Published(NamedTuple):
    """Weights on COCO.

    Args:
        entry: torchvision's, which knows where the file is.
        arguments: of our builder, as these weights want them.
    """

    entry: WeightsEnum
    arguments: dict[str, Any]

    @property
    def digest(self) -> str:
        """The beginning of the file's SHA-256, which is the end of its name (torch.hub's convention)."""
        return str(self.entry.url).rsplit("-", 1)[1].split(".")[0]


_FIRST: dict[str, Any] = {"norm_eps": 0.0}  # torchvision sets it when it loads them
_SECOND: dict[str, Any] = {"branch_norm": "frozen"}

PUBLISHED = {
    "faster-rcnn-r50-fpn-torchvision": Published(FasterRCNN_ResNet50_FPN_Weights.COCO_V1, _FIRST),
    "faster-rcnn-r50-fpn-torchvision-v2": Published(FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1, _SECOND),
    "fcos-r50-torchvision": Published(FCOS_ResNet50_FPN_Weights.COCO_V1, {}),
    "keypoint-rcnn-r50-fpn-torchvision": Published(KeypointRCNN_ResNet50_FPN_Weights.COCO_V1, _FIRST),
    "mask-rcnn-r50-fpn-torchvision": Published(MaskRCNN_ResNet50_FPN_Weights.COCO_V1, _FIRST),
    "mask-rcnn-r50-fpn-torchvision-v2": Published(MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1, _SECOND),
}
"""By the builder of ours with the parts they were trained with."""


def fetch(published: Published, say: Callable[[str], object]) -> Path:
    """The file, from torch.hub's folder, downloaded if it is not there.

    Raises:
        ValueError: it cannot be downloaded, or is not the one that was published.
    """
    url = str(published.entry.url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.is_file():
        say(f"downloading {url} to {file}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), published.digest)
        except (OSError, HTTPException, RuntimeError) as error:  # the last of another hash
            raise ValueError(
                f"{url} cannot be downloaded ({error}): put it where it is looked for, as {file}, "
                "or start from a run or a weights file with --init RUN|FILE"
            ) from None
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(published.digest):
        raise ValueError(
            f"{file}: its SHA-256 is {found[:8]}..., expected {published.digest}...: damaged, or another file than {url}: "
            "remove it, and it is downloaded anew"
        )
    return file
