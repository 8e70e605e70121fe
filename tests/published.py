"""Files as torchvision publishes them, made on the spot, in the folder where it keeps what it has downloaded."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from maskwright.weights.published import PUBLISHED


def publish(system: str, data: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *, digest: str | None = None) -> Path:
    """Save what torchvision would publish for a system of ours, under a name with its hash, and have its entry name that file.

    Args:
        folder: torch.hub's, then the file is in its cache; another one is where the file is downloaded from.
        digest: the hash in the name, where it is not to be the true one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(data, folder / "new.pth")
    true = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    file = (folder / "new.pth").rename(folder / f"theirs_coco-{digest or true[:8]}.pth")
    monkeypatch.setattr(PUBLISHED[system].entry.value, "url", file.as_uri())
    return file


def torch_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub keeps weights from now on."""
    monkeypatch.setenv("TORCH_HOME", str(folder))
    return folder / "hub" / "checkpoints"
