"""No peer, but what both sides read: SOURCE.npz FOLDER COUNT -> COUNT samples as x.npy, y.npy and data.npz.

A process of its own, since the peak memory of a process counts as that of those it starts.
"""

import sys
from pathlib import Path

import numpy as np

source, folder, count = sys.argv[1:]
data = np.load(source)
rows = np.arange(int(count)) % len(data["y"])
arrays = {name: data[name][rows] for name in ("x", "y")}
for name, array in arrays.items():
    np.save(Path(folder, f"{name}.npy"), array)
np.savez(Path(folder, "data.npz"), **arrays)
