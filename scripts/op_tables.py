"""Make edgedl/contract/op_tables.json: what each release of a runtime says of itself, changes only.

    .venv/bin/python scripts/op_tables.py [--python PATH]... [RUNTIME]...

Every release is installed with pip into a folder of its own and asked in a child, see op_probes.py. Releases that
this Python cannot hold are tried with the interpreters given. Nothing in the table is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "edgedl" / "contract" / "op_tables.json"
PROBES = Path(__file__).with_name("op_probes.py")
LAST_VERSION = 24
FEW = 20  # releases that are all asked
RUNTIMES = {
    "litert": ("ai-edge-litert", "tflite", "ai_edge_litert.interpreter"),
    "tflite-runtime": ("tflite-runtime", "tflite", "tflite_runtime.interpreter"),
    "tflm": ("tflite-micro", "tflm", "-"),
    "onnxruntime": ("onnxruntime", "onnxruntime", "-"),
}


def main() -> None:
    """Ask every release, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], help="another interpreter to try releases with")
    parser.add_argument("runtimes", nargs="*", metavar="RUNTIME", help=f"of {', '.join(RUNTIMES)}; by default all")
    given = parser.parse_args()
    for name in given.runtimes or RUNTIMES:
        made = _table(name, [sys.executable, *given.python])
        table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        TABLE.write_text(_text(dict(sorted({**table, name: made}.items()))))


def _table(name: str, interpreters: Sequence[str]) -> dict[str, Any]:
    package, kind, _ = RUNTIMES[name]
    told: dict[str, dict[str, Any]] = {}
    for release, python in sorted(_releases(package, interpreters).items(), key=lambda e: version_key(e[0])):
        try:
            told[release] = _ask(name, release, python)
        except subprocess.CalledProcessError as e:
            reason = (e.stderr or str(e)).strip().splitlines()[-1]
            print(f"{package} {release}: left out, it does not start here: {reason}", file=sys.stderr)
            continue
        print(f"{package} {release}: {len(told[release].get('ops', told[release]))} operators", file=sys.stderr)
    ops = {release: facts["ops"] if kind == "onnxruntime" else facts for release, facts in told.items()}
    ops = {release: names for release, names in ops.items() if names}
    found: dict[str, Any] = {"package": package, "releases": list(told), "told_since": next(iter(ops))}
    found["ops"] = _changes(ops)
    if kind == "onnxruntime":
        for key in ("opset", "ir_version"):
            found[key] = _changes({release: {key: facts[key]} for release, facts in told.items()})[key]
    return found


def _releases(package: str, interpreters: Sequence[str]) -> dict[str, str]:
    """The releases to ask, each with its Python: all of a small package, else the last patch of each minor one.

    Of a package that is never final it is the last of each half-year.
    """
    latest: dict[str, str] = {}
    holders: dict[str, str] = {}
    for python in interpreters:
        command = [python, "-m", "pip", "index", "versions", "--pre", package]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        match = re.search(r"Available versions: (.*)", said)
        for release in match[1].split(", ") if match else ():
            holders.setdefault(release, python)
    final = [r for r in holders if re.fullmatch(r"[\d.]+", r)] or list(holders)
    for release in sorted(final, key=version_key):
        latest[release if len(final) <= FEW else _line(release)] = release
    return {release: holders[release] for release in latest.values()}


def _line(release: str) -> str:
    """What only the last release of is asked: 2.1 of 2.1.6, the first half of 2026 of 0.dev20260314000000."""
    if match := re.search(r"dev(\d{4})(\d\d)", release):
        return f"{match[1]}-{(int(match[2]) + 5) // 6}"
    return ".".join(release.split(".")[:2])


def _ask(name: str, release: str, python: str) -> dict[str, Any]:
    package, kind, module = RUNTIMES[name]
    with tempfile.TemporaryDirectory() as folder:
        extra = ["numpy<2"] if kind != "tflm" else ["numpy<2", "flatbuffers", "bitarray"]
        install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", folder]
        subprocess.run([python, *install, f"{package}=={release}", *extra], check=True)
        probes = Path(folder, "probes.pickle")
        probes.write_bytes(pickle.dumps(_probes(kind), protocol=4))
        command = [python, str(PROBES), kind, module, str(probes)]
        done = subprocess.run(command, env={"PYTHONPATH": folder}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _probes(kind: str) -> Any:
    if kind == "onnxruntime":
        from onnx import defs

        functions = [s for s in defs.get_all_schemas() if s.has_function or s.has_context_dependent_function]
        return {
            "functions": {s.name: s.since_version for s in functions if not s.domain},
            "opset": {n: _onnx(opset=n, ir_version=8) for n in range(7, 41)},
            "ir_version": {n: _onnx(opset=13, ir_version=n) for n in range(3, 31)},
        }
    from ai_edge_litert import schema_py_generated as schema

    codes = {name: code for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    versions = (1,) if kind == "tflm" else range(1, LAST_VERSION + 1)
    return {name: [_tflite(code, v, used=kind == "tflm") for v in versions] for name, code in codes.items()}


def _tflite(code: int, version: int, *, used: bool) -> bytes:
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    none = np.zeros(0, np.int32)
    operators = [schema.OperatorT(opcodeIndex=0, inputs=none, outputs=none)] if used else []
    graph = schema.SubGraphT(tensors=[], inputs=none, outputs=none, operators=operators)
    named = schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=version)
    model = schema.ModelT(version=3, operatorCodes=[named], subgraphs=[graph], buffers=[schema.BufferT()])
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _onnx(*, opset: int, ir_version: int) -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version).SerializeToString()  # type: ignore[no-any-return]


def _changes(told: dict[str, dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """{name: [[release, value from there on], ...]}; 0 from where it is gone. Before `told_since` ops are not known."""
    found: dict[str, list[list[Any]]] = {}
    for name in sorted(set().union(*told.values())):
        found[name] = list(_turns(name, told))
    return found


def _turns(name: str, told: dict[str, dict[str, Any]]) -> Iterator[list[Any]]:
    before: Any = 0
    for release, facts in told.items():
        value = facts.get(name, 0)
        if value != before:
            yield [release, value]
        before = value


def version_key(release: str) -> tuple[int, ...]:
    """Releases in their order."""
    return tuple(int(n) for n in re.findall(r"\d+", release))


def _text(table: dict[str, Any]) -> str:
    """JSON with a line an operator, so that a diff shows what changed."""
    lines = []
    for name, facts in table.items():
        inner = [f"    {json.dumps(key)}: {json.dumps(facts[key])}" for key in facts if key != "ops"]
        ops = ",\n".join(f"      {json.dumps(op)}: {json.dumps(turns)}" for op, turns in facts["ops"].items())
        inner.append(f'    "ops": {{\n{ops}\n    }}')
        lines.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(inner) + "\n  }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
