"""ImageNet weights for a timm backbone."""

from pathlib import Path
from typing import cast

import timm
from torch import Tensor, nn

from maskwright.weights.files import read_state_dict


def load_backbone(network: nn.Module, name: str, source: str) -> None:
    """Fill a timm feature extractor with weights; its classifier is left out.

    Args:
        network: what `timm.create_model(name, features_only=True)` built.
        name: timm's name of it.
        source: a .safetensors or .pth file with timm's (or torchvision's) keys, or "timm" to download timm's own weights.

    Raises:
        ValueError: the file cannot be read, or is of another network.
    """
    if source == "timm":
        state = cast(dict[str, Tensor], timm.create_model(name, pretrained=True).state_dict())
    else:
        state = read_state_dict(Path(source))
    expected = network.state_dict()
    for key in expected:  # timm joins names of nested layers when it cuts a network: features.0 becomes features_0
        if key not in state and key.replace("_", ".", 1) in state:
            state[key] = state[key.replace("_", ".", 1)]
    wrong = [key for key, value in expected.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: not weights of {name}: {', '.join(wrong[:3])}{more} are missing or of another shape")
    if any(key.endswith("running_mean") for key in state) and not any(key.endswith("running_mean") for key in expected):
        raise ValueError(f"{source}: made for batch norm, but the network has another norm: leave arguments.norm as it is")
    network.load_state_dict({key: state[key].to(value.dtype) for key, value in expected.items()})
