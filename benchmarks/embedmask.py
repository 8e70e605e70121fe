"""EmbedMask's claims as small experiments on real data, beside Mask R-CNN at equal budget.

    python -m benchmarks.embedmask --nuclei nuclei --people people-keypoints --out runs/embedmask

Runs that are finished are not repeated; one that was stopped goes on.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.learning import recipe, trained

ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mask R-CNN": ("mask-rcnn-small", {}),
    "EmbedMask V3": ("embedmask-small", {}),
    "EmbedMask V4, fused": ("embedmask-fused-small", {}),
    "EmbedMask V1, arXiv": ("embedmask-arxiv-small", {}),
    "V3, fixed margin": ("embedmask-small", {"margin": "fixed"}),
    "V3, shared embeddings": ("embedmask-small", {"embeddings": "shared"}),
}


def train_all(data: Path, out: Path, names: list[str], *, steps: int, seeds: int, short_px: int) -> None:
    """Every entry on every seed."""
    for seed in range(seeds):
        for name in names:
            system, arguments = ENTRIES[name]
            folder = out / f"{data.name}-{name.lower().replace(', ', '-').replace(' ', '-')}-{seed}"
            plan = recipe(system, data, steps=steps, seed=seed, short_px=short_px, long_px=2 * short_px, **arguments)
            trained(folder, plan)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=Path, required=True)
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--people-steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    three = list(ENTRIES)[:3]
    train_all(options.nuclei, options.out, list(ENTRIES), steps=options.steps, seeds=options.seeds, short_px=512)
    train_all(options.people, options.out, three, steps=options.people_steps, seeds=options.seeds, short_px=320)
