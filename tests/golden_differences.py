"""Print the largest absolute difference of every golden output: `.venv/bin/python tests/golden_differences.py`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_weights import fill_from_names

from stages.concerto import build_concerto
from stages.vggt import build_vggt

GOLDEN = Path(__file__).parent / "golden"


def _outputs(name: str, inputs: Mapping[str, Any], want: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
    config = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    model = (build_vggt if name.startswith("vggt") else build_concerto)(config).eval()
    fill_from_names(model)
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    with torch.inference_mode():
        if name.startswith("vggt"):
            return model(tensors["images"], want)
        return model({**tensors, "offset": torch.tensor([len(tensors["coord"])])})


def main() -> None:
    for name in ("vggt_tiny", "vggt_small", "concerto_tiny"):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            arrays = dict(file)
        for case in sorted({key.split("_", 1)[0][2:] for key in arrays if key.startswith("in")}):
            inputs = {key.split("_", 1)[1]: value for key, value in arrays.items() if key.startswith(f"in{case}_")}
            expected = {key.split("_", 1)[1]: value for key, value in arrays.items() if key.startswith(f"out{case}_")}
            found = _outputs(name, inputs, tuple(expected))
            for output, value in expected.items():
                difference = np.abs(found[output].numpy().astype(np.float64) - value).max()
                sys.stdout.write(f"{name:14} {case}  {output:12} {difference:.2g}\n")


if __name__ == "__main__":
    main()
