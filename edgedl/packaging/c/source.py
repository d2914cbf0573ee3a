"""The C and C++ text of a package, from its manifest. C99 and C++11."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.packaging.c import tflm

TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t", "int64": "int64_t"}
TYPES |= {"uint16": "uint16_t", "uint32": "uint32_t", "uint64": "uint64_t"}
TYPES |= {"float32": "float", "float64": "double", "bool": "uint8_t"}
A_LINE = 24  # numbers
ARENA_NOTE = (
    f"{tflm.METHOD}: {tflm.HOW}. A 32-bit core needs less for pointers, kernels such as CMSIS-NN's need more for "
    "scratch memory"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """Arrays in TFLM's order of the tensors, as these store them, (samples, ...); `tolerances` are of the outputs."""

    inputs: Sequence[NDArray[Any]]
    outputs: Sequence[NDArray[Any]]
    tolerances: Sequence[float]


def model_header(name: str, found: Mapping[str, Any], arena: int) -> str:
    """NAME_model.h."""
    upper = f"{name}_model".upper()
    lines = [
        f"/* The .tflite file, {found['artifact']['sha256']} (SHA-256). */",
        f"#define {upper}_BYTES {found['artifact']['size_bytes']}",
        f"extern const uint8_t {name}_model[{upper}_BYTES];",
        "",
        f"/* {ARENA_NOTE}. */",
        f"#define {upper}_ARENA_BYTES {arena}",
    ]
    for side in ("input", "output"):
        for i, spec in enumerate(found[f"{side}s"]):
            lines += ["", *_tensor(f"{upper}_{side.upper()}_{i}", f"{side} {spec['name']}", spec)]
    if found["labels"]:
        count = f"{upper}_LABELS"
        lines += ["", f"#define {count} {len(found['labels'])}"]
        lines.append(f"extern const char *const {name}_model_labels[{count}];")
    steps = json.dumps(found["preprocessing"], ensure_ascii=False) if found["preprocessing"] else "nothing"
    lines += ["", _comment(f"What the firmware does before, in order: {steps}.")]
    return _guarded(f"{upper}_H", _title(found), ["#include <stdint.h>"], lines)


def model_source(name: str, found: Mapping[str, Any], data: bytes) -> str:
    """NAME_model.c."""
    upper = f"{name}_model".upper()
    lines = [
        f'#include "{name}_model.h"',
        "",
        "#if defined(__GNUC__)",
        "__attribute__((aligned(16)))",
        "#endif",
        f"const uint8_t {name}_model[{upper}_BYTES] = {{",
        *_numbers(str(b) for b in data),
        "};",
    ]
    if found["labels"]:
        labels = (f"    {_literal(label)}," for label in found["labels"])
        lines += ["", f"const char *const {name}_model_labels[{upper}_LABELS] = {{", *labels, "};"]
    return "\n".join(lines) + "\n"


def golden_header(name: str, found: Mapping[str, Any], golden: Golden) -> str:
    """NAME_golden.h."""
    upper = f"{name}_golden".upper()
    lines = [f"#define {upper}_SAMPLES {len(golden.inputs[0])}"]
    for side, arrays in (("input", golden.inputs), ("output", golden.outputs)):
        for i, (spec, values) in enumerate(zip(found[f"{side}s"], arrays, strict=True)):
            lines += ["", _comment(f"{side} {spec['name']}")]
            if side == "output":
                lines.append("/* The largest difference that is the same answer. */")
                lines.append(f"#define {upper}_TOLERANCE_{i} {_float(golden.tolerances[i])}")
            lines.append(f"extern const {_array(name, side, i, values)};")
    return _guarded(f"{upper}_H", _title(found), ["#include <stdint.h>"], lines)


def golden_source(name: str, golden: Golden) -> str:
    """NAME_golden.c."""
    lines = [f'#include "{name}_golden.h"']
    for side, arrays in (("input", golden.inputs), ("output", golden.outputs)):
        for i, values in enumerate(arrays):
            lines += ["", f"const {_array(name, side, i, values)} = {{"]
            for sample in values.reshape(len(values), -1):
                lines += ["{", *_numbers(_number(v) for v in sample), "},"]
            lines.append("};")
    return "\n".join(lines) + "\n"


def resolver_header(name: str, found: Mapping[str, Any], methods: Sequence[str]) -> str:
    """NAME_tflm.h."""
    resolver = f"tflite::MicroMutableOpResolver<{len(methods)}>"
    lines = [
        "/* A resolver with the operators of this model alone. */",
        f"typedef {resolver} {name}_resolver;",
        "",
        f"inline TfLiteStatus {name}_add_ops({name}_resolver &resolver) {{",
        *(f"  if (resolver.{method}() != kTfLiteOk) return kTfLiteError;" for method in methods),
        "  return kTfLiteOk;",
        "}",
    ]
    guard = f"{name}_tflm_H".upper()
    include = '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"'
    body = [f"/* {_title(found)} */", f"#ifndef {guard}", f"#define {guard}", include, "", *lines, "", "#endif"]
    return "\n".join(body) + "\n"


def readme(name: str, found: Mapping[str, Any], arena: int) -> str:
    """README.md: sizes, and a program that runs the model on its golden samples."""
    upper, model = name.upper(), f"{name}_model"
    rows = (f"{name}_golden_input_{i}[sample]" for i in range(len(found["inputs"])))
    fill = [f"    memcpy(interpreter.input({i})->data.raw, {row}, sizeof {row});" for i, row in enumerate(rows)]
    release = found["runtime"]["minimums"].get("tflm")
    needed = f"\n- TFLM: as in tflite-micro {release} of PyPI, or newer." if release else ""
    check = [line for i, spec in enumerate(found["outputs"]) for line in _check(name, i, TYPES[spec["dtype"]])]
    return f"""# {found["name"]} {found["version"]} for microcontrollers
Compile `{model}.c` into the firmware and `{name}_golden.c` into its test; both are constants and stay in flash.
- Flash: {found["artifact"]["size_bytes"]:,} bytes for the model, and the code of {len(found["ops"])} operators.
- RAM: an arena of {arena:,} bytes ({ARENA_NOTE}).{needed}

```cpp
#include <string.h>
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "{model}.h"
#include "{name}_golden.h"
#include "{name}_tflm.h"

alignas(16) static uint8_t arena[{upper}_MODEL_ARENA_BYTES];

bool {name}_self_test() {{
  static {name}_resolver resolver;
  if ({name}_add_ops(resolver) != kTfLiteOk) return false;
  static tflite::MicroInterpreter interpreter(tflite::GetModel({model}), resolver, arena, sizeof arena);
  if (interpreter.AllocateTensors() != kTfLiteOk) return false;
  for (int sample = 0; sample < {upper}_GOLDEN_SAMPLES; ++sample) {{
{chr(10).join(fill)}
    if (interpreter.Invoke() != kTfLiteOk) return false;
{chr(10).join(check)}
  }}
  return true;
}}
```
`edgedl verify` checks this package; `content/manifest.json` says what is in it.
"""


def _check(name: str, i: int, type_: str) -> list[str]:
    """The lines that compare one output with its golden one."""
    upper, out = name.upper(), f"output_{i}"
    return [
        f"    const {type_} *{out} = (const {type_} *)interpreter.output({i})->data.raw;",
        f"    for (int i = 0; i < {upper}_MODEL_OUTPUT_{i}_ELEMENTS; ++i) {{",
        f"      const float off = (float){out}[i] - (float){name}_golden_{out}[sample][i];",
        f"      if (off > {upper}_GOLDEN_TOLERANCE_{i} || -off > {upper}_GOLDEN_TOLERANCE_{i}) return false;",
        "    }",
    ]


def _tensor(prefix: str, about: str, spec: Mapping[str, Any]) -> list[str]:
    sizes = [n or 1 for n in spec["shape"]]
    lines = [
        _comment(f"{about}: {spec['dtype']} ({', '.join(map(str, sizes))})"),
        f"#define {prefix}_ELEMENTS {int(np.prod(sizes))}",
    ]
    if spec["scale"]:
        lines.append("/* real value = (code - ZERO_POINT) * SCALE */")
        lines.append(f"#define {prefix}_SCALE {_float(spec['scale'][0])}")
        lines.append(f"#define {prefix}_ZERO_POINT ({spec['zero_point'][0]})")
    return lines


def _array(name: str, side: str, number: int, values: NDArray[Any]) -> str:
    count = int(np.prod(values.shape[1:]))
    return f"{TYPES[values.dtype.name]} {name}_golden_{side}_{number}[{len(values)}][{count}]"


def _numbers(values: Iterable[str]) -> list[str]:
    """Lines of `A_LINE` numbers."""
    found = list(values)
    return [",".join(found[i : i + A_LINE]) + "," for i in range(0, len(found), A_LINE)]


def _number(value: Any) -> str:
    return _float(float(value)) if isinstance(value, np.floating) else str(int(value))


def _float(value: float) -> str:
    """A float constant of C that is the very float32: nine digits tell every one of them."""
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _title(found: Mapping[str, Any]) -> str:
    return f"{found['name']} {found['version']}, written by edgedl"


def _comment(text: str) -> str:
    """A comment of C; what would end it, or start another line, is taken apart."""
    plain = text.replace("*/", "* /").replace("/*", "/ *").replace("\\\n", " ").replace("\n", " ")
    return f"/* {plain} */"


def _literal(text: str) -> str:
    """A string of C in UTF-8, every byte but plain letters, digits and signs as three octal digits."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'


def _guarded(guard: str, title: str, includes: Sequence[str], lines: Sequence[str]) -> str:
    head = [f"/* {title} */", f"#ifndef {guard}", f"#define {guard}", *includes, ""]
    opened = ["#ifdef __cplusplus", 'extern "C" {', "#endif", ""]
    closed = ["", "#ifdef __cplusplus", "}", "#endif", "#endif"]
    return "\n".join([*head, *opened, *lines, *closed]) + "\n"
