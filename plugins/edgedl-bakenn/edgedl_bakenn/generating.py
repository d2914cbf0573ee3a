"""An int8 .tflite as C: `python -m edgedl_bakenn.generating MODEL FOLDER` writes it and tells about it as JSON.

In a process of its own, for what the file may do to the compiler.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgedl.errors import EdgedlError, UnsupportedError
from edgedl_bakenn import mending
from edgedl_tflite import flatbuffer

NAME = "model"


def generate(source: Path, folder: Path) -> dict[str, Any]:
    """Write the C into `folder`; what `emulation.Generated` holds. Raises UnsupportedError."""
    import bakenn
    from bakenn.backend.cmsis_nn import bundle
    from bakenn.backend.portable_c.families import conv

    # bakenn gives CMSIS-NN no convolution whose padding differs from side to side, as SAME with a stride of 2 has. Its
    # kernels take the padding before and the size of the output, and TFLM hands them just that; the outputs are tested.
    conv._symmetric_padding = lambda padding: True  # noqa: ARG005
    model = flatbuffer.read(source.read_bytes())
    left_out = mending.mend(model)
    options = bakenn.CBackendOptions(
        target=bakenn.CORTEX_M4, kernel_policy=bakenn.KernelPolicy.STATIC_PRIORITY, enable_cmsis_nn=True
    )
    try:
        made = bakenn.compile_tflite(flatbuffer.write(model), folder, name=NAME, backend_options=options).artifacts
    except bakenn.BakeNNError as e:
        message = f"bakenn: {e}"
        raise UnsupportedError(message) from e
    sources = (made.model_source, made.weights_source, made.kernels_source, *made.support_sources)
    graph = model.subgraphs[0]
    quantization = graph.tensors[graph.inputs[0]].quantization
    return {
        "sources": [str(path) for path in sources],
        "include": [str(made.output_dir), *(str(path) for path in made.support_include_dirs)],
        "generator": f"bakenn {bakenn.__version__}",
        "kernels": f"CMSIS-NN {bundle.CMSIS_NN_VERSION}",
        "left_out": left_out,
        "input_scale": float(quantization.scale[0]),
        "input_zero_point": int(quantization.zeroPoint[0]),
    }


if __name__ == "__main__":
    try:
        print(json.dumps({"made": generate(Path(sys.argv[1]), Path(sys.argv[2]))}))
    except EdgedlError as error:
        print(json.dumps({"refused": str(error)}))
