"""A Keras 3 model as the Keras 2 file that peers frozen there read: MODEL OUT.h5; carried by edgedl-tfmot."""

import sys
from pathlib import Path

import h5py

from edgedl import models
from edgedl_tfmot import carrying, keras_2

network = carrying.describe(models.load(Path(sys.argv[1])).model)
keras_2.build(network.graph, network.weights()).save(sys.argv[2])
with h5py.File(sys.argv[2], "r+") as file:  # a key of inputs that Keras 2.15 does not know yet
    file.attrs["model_config"] = file.attrs["model_config"].replace(', "optional": false', "")
