"""Files as torchvision and timm publish them, made on the spot, in the folders where both keep what they have downloaded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

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


def keep_for_timm(folder: Path, name: str, state: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put weights where timm keeps those of this name, and cut it off from the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    kept, commit = folder / f"models--timm--{name}", "0" * 40
    for part in ("refs", f"snapshots/{commit}"):
        (kept / part).mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    save_file(dict(state), kept / "snapshots" / commit / "model.safetensors")
    return kept / "snapshots" / commit / "model.safetensors"
