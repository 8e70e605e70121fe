"""Make the weights that ship with the repository from a finished run: the best model, in half precision.

uv run maskwright train mask-rcnn-small --data nuclei --out runs/nuclei --set evaluate_every=5 \
    --set augment.vertical_flip=0.5 --set augment.transpose=0.5
uv run python examples/nuclei/ship_weights.py runs/nuclei
"""

import sys
from pathlib import Path

from maskwright.runs.checkpoints import find_weights, read_tensors, save_tensors


def main() -> None:
    """Write weights.safetensors beside this file."""
    tensors, metadata = read_tensors(find_weights(Path(sys.argv[1])))
    path = Path(__file__).parent / "weights.safetensors"
    save_tensors(path, {name: tensor.half() for name, tensor in tensors.items()}, metadata)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
