"""Whether a package is what its manifest says, and gives its golden outputs here."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl import artifacts, data, worker
from edgedl.errors import EdgedlError, GateError, InputError, PluginError
from edgedl.packaging import archives, golden, keys, manifest, signature
from edgedl.packaging.extraction import DAMAGE, GZIP, ZIP, extract, kind
from edgedl.types import AgentRuntime, Artifact, Check, Method, TensorSpec, Verdict, to_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

STEPS = ("archive", "manifest", "files", "signature", "layout", "tensors", "golden")
REPLAY_TIMEOUT_S = 120.0


def verify(package: Path, key: Path | None = None) -> dict[str, Any]:
    """`{"verdict": "pass" | "fail", "package", "checks", "findings"}`: a check a step, what does not hold a line each.

    With the file of a public key, a package that its owner did not sign fails, and nothing of it is run. A step that
    needs what does not hold is `unchecked`. Raises InputError where the file is no package at all, PluginError where
    all of it holds but no runtime for its format is installed: then nothing was replayed.
    """
    public = keys.load_public(key) if key else None
    _check_is_archive(package)
    checks = _checks(package, worker.pool().scratch("package"), public, str(key))
    done = {c.name.rpartition(".")[2] for c in checks}
    checks += [
        Check(name=step, method=Method.STATIC, verdict=Verdict.UNCHECKED, why="not reached")
        for step in STEPS
        if step not in done
    ]
    findings = [line for c in checks if c.verdict is Verdict.FAIL for line in c.why.split("\n")]
    verdict = "fail" if findings else "pass"
    return {"verdict": verdict, "package": str(package), "checks": to_json(checks), "findings": findings}


def _checks(package: Path, tree: Path, key: Ed25519PublicKey | None, key_file: str) -> list[Check]:
    """Checks up to the first whose failure leaves the later ones without a base."""
    checks = [_check("archive", extract(package, tree))]
    if _fail(checks):
        return checks
    layout = _check("layout", _layout(package, tree))
    folder, problems = manifest.locate(tree)
    found: dict[str, Any] = {}
    if folder:
        found, problems = manifest.read(folder)
    checks.append(_check("manifest", problems))
    if folder and not problems:
        checks.append(_check("files", _files(tree, folder, found)))
        checks.append(_signature(folder, key, key_file))
    if folder is None or _fail(checks):
        return [*checks, layout]
    artifact = _artifact(folder, found)
    try:
        runtime, version = golden.runtime_for(artifact.format, found["runtime"]["name"])
    except PluginError as e:
        if _fail([layout]):
            return [*checks, layout]
        message = f"{package}: manifest and hashes hold, the golden inputs cannot be replayed: {e}"
        raise PluginError(message) from e
    checks += [layout, _check("tensors", _tensors(artifact, runtime))]
    if _fail(checks[-1:]):
        return checks
    return checks + _replay(artifact, runtime, version, found["golden"], folder)


def read_manifest(package: Path) -> dict[str, Any]:
    """The manifest of a package whose files are what it says. Raises InputError; GateError for what does not hold."""
    _check_is_archive(package)
    tree = worker.pool().scratch("package")
    problems = extract(package, tree)
    folder = None
    if not problems:
        folder, problems = manifest.locate(tree)
    found: dict[str, Any] = {}
    if folder:
        found, problems = manifest.read(folder)
        problems = problems or _files(tree, folder, found)
    if problems:
        message = f"{package}: {problems[0]}; see edgedl verify {package}"
        raise GateError(message)
    return found


def _check(name: str, problems: Sequence[str]) -> Check:
    verdict = Verdict.FAIL if problems else Verdict.PASS
    return Check(name=name, method=Method.STATIC, verdict=verdict, why="\n".join(problems))


def _fail(checks: Sequence[Check]) -> bool:
    return any(c.verdict is Verdict.FAIL for c in checks)


def _check_is_archive(package: Path) -> None:
    """Raises InputError for a path that holds no archive; a damaged one is still one."""
    if not package.is_file():
        what = "is a folder; a package is one file" if package.is_dir() else "no such file"
        message = f"{package}: {what}"
        raise InputError(message)
    try:
        found = kind(package)
        with package.open("rb") as f:
            start = f.read(4)
    except OSError as e:
        message = f"{package}: cannot be read: {e.strerror}"
        raise InputError(message) from e
    if found is None or not (start.startswith((ZIP, GZIP)) or _is_damaged(package, start)):
        message = f"{package}: no package: neither zip nor gzip; write one with edgedl package"
        raise InputError(message)


def _is_damaged(package: Path, start: bytes) -> bool:
    """Whether a file that begins as no archive ends as one, or has one of the first bytes: the other was changed."""
    with contextlib.suppress(*DAMAGE, OSError), zipfile.ZipFile(package) as archive:
        return any(Path(name).name == manifest.NAME for name in archive.namelist())
    return any(a == b for a, b in zip(start, GZIP, strict=False))


def _signature(folder: Path, key: Ed25519PublicKey | None, key_file: str) -> Check:
    """Without a key a signature proves nothing, and is for information."""
    problems = signature.problems(folder, key, key_file)
    if problems or key:
        return _check("signature", problems)
    signer = signature.keyid(folder)
    why = f"signed with key {signer}; --key FILE proves it" if signer else "not signed"
    return Check(name="signature", method=Method.STATIC, why=why)


def _layout(package: Path, tree: Path) -> list[str]:
    """Whether the archive is the one that edgedl makes of these files: so every byte of it is accounted for."""
    again = worker.pool().scratch("layout") / f"package{kind(package)}"
    archives.write(tree, again)
    if data.file_sha256(package) == data.file_sha256(again):
        return []
    size, ours = package.stat().st_size, again.stat().st_size
    return [f"changed or packed again: edgedl writes this content as another archive ({ours:,} bytes, not {size:,})"]


def _files(tree: Path, folder: Path, found: Mapping[str, Any]) -> list[str]:
    """What is missing, extra, changed, or says something else than the manifest."""
    place = folder.relative_to(tree)
    told = {(place / name).as_posix(): sha256 for name, sha256 in found["files"].items()} | found["package"]["files"]
    there = manifest.hashes(tree)
    for name in (manifest.NAME, manifest.SIGNATURE):
        there.pop((place / name).as_posix(), None)
    there = {name: sha256 for name, sha256 in there.items() if not archives.is_derived(name, told)}
    problems = [f"{name[:80]!r} is missing" for name in sorted(told.keys() - there.keys())]
    problems += [f"{name!r} is not in the manifest" for name in sorted(there.keys() - told.keys())]
    changed = [name for name in sorted(told.keys() & there.keys()) if there[name] != told[name]]
    problems += [f"{name!r} was changed: its SHA-256 is not the manifest's" for name in changed]
    return problems or _contradictions(folder, found)


def _contradictions(folder: Path, found: Mapping[str, Any]) -> list[str]:
    problems = []
    size = (folder / found["artifact"]["file"]).stat().st_size
    if size != found["artifact"]["size_bytes"]:
        problems.append(f"the artifact has {size:,} bytes, the manifest says {found['artifact']['size_bytes']:,}")
    labels = folder / manifest.LABELS
    lines = labels.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if labels.exists() else []
    if lines != found["labels"]:
        problems.append(f"{manifest.LABELS} has other labels than the manifest")
    try:
        steps = json.loads((folder / manifest.PREPROCESSING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        steps = None
    if steps != {key: found[key] for key in ("preprocessing", "embedded")}:
        problems.append(f"{manifest.PREPROCESSING} has other steps than the manifest")
    return problems


def _artifact(folder: Path, found: Mapping[str, Any]) -> Artifact:
    about = found["artifact"]
    return Artifact(
        path=folder / about["file"],
        format=about["format"],
        scheme=about["scheme"],
        sha256=about["sha256"],
        size_bytes=about["size_bytes"],
        compressed_bytes=about["compressed_bytes"],
        inputs=artifacts.specs_from_json(found["inputs"]),
        outputs=artifacts.specs_from_json(found["outputs"]),
        lineage=artifacts.lineage_from_json(found["lineage"]),
    )


def _tensors(artifact: Artifact, runtime: AgentRuntime) -> list[str]:
    """Where the inputs and outputs that the runtime sees are not the manifest's."""
    try:
        seen = worker.call(
            "describe",
            {"artifact": str(artifact.path), "runtime": runtime.name},
            child=artifacts.child_of(runtime),
            interpreter=artifacts.interpreter_of(runtime),
            timeout_s=REPLAY_TIMEOUT_S,
        )
    except EdgedlError as e:
        return [f"the artifact does not load: {e}"]
    problems = []
    for side, told in (("input", artifact.inputs), ("output", artifact.outputs)):
        real = artifacts.specs_from_json(seen[f"{side}s"])
        if {s.name for s in real} != {s.name for s in told}:
            problems.append(f"the artifact's {side}s are {_names(real)}, the manifest says {_names(told)}")
            continue
        by_name = {s.name: s for s in real}
        problems += [
            f"{side} {spec.name!r}: the artifact has {_shown(by_name[spec.name])}, the manifest says {_shown(spec)}"
            for spec in told
            if not _same(spec, by_name[spec.name])
        ]
    return problems


def _same(told: TensorSpec, real: TensorSpec) -> bool:
    """Alike as far as the runtime knows: it gives free sizes a value, and ONNX Runtime tells no scales."""
    fits = all(None in pair or pair[0] == pair[1] for pair in zip(told.shape, real.shape, strict=False))
    if told.dtype != real.dtype or len(told.shape) != len(real.shape) or not fits:
        return False
    if not real.scale:
        return True
    pairs = zip(told.scale, real.scale, strict=False)
    alike = len(told.scale) == len(real.scale) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs)
    return alike and told.zero_point == real.zero_point


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(s.name) for s in specs)


def _shown(spec: TensorSpec) -> str:
    shape = ", ".join("any" if n is None else str(n) for n in spec.shape)
    return f"{spec.dtype} ({shape})" + (f", scale {spec.scale}, zero point {spec.zero_point}" if spec.scale else "")


def _replay(
    artifact: Artifact, runtime: AgentRuntime, version: str, told: Mapping[str, Any], folder: Path
) -> list[Check]:
    """A check an output, by its name where there are several: the difference to the golden one, within tolerance."""
    inputs = {name: folder / file for name, file in told["inputs"].items()}
    own = told["runtimes"].get(runtime.name, told)  # kernels of runtimes round otherwise
    try:
        expected = {name: np.load(folder / file) for name, file in own["outputs"].items()}
        found = golden.run(artifact, runtime, inputs)
    except (EdgedlError, ValueError, OSError, EOFError, TypeError) as e:
        return [_check("golden", [f"the golden inputs cannot be replayed: {e}"])]
    on = f"{runtime.name} {version}"
    compared = [
        _compared(spec, own["tolerance"][spec.name], expected[spec.name], found[spec.name], on)
        for spec in artifact.outputs
    ]
    if len(compared) == 1:
        return compared
    return [replace(c, name=f"{s.name}.{c.name}") for s, c in zip(artifact.outputs, compared, strict=True)]


def _compared(
    spec: TensorSpec, limit: Mapping[str, Any], expected: NDArray[Any], found: NDArray[Any], on: str
) -> Check:
    unit = limit["unit"]
    measured = golden.difference(spec, unit, expected, found)
    holds = measured <= limit["value"]
    shown = f"{measured:g} {unit}" if np.isfinite(measured) else "not comparable: another shape, or not finite"
    return Check(
        name="golden",
        measured=measured if np.isfinite(measured) else None,
        limit=limit["value"],
        unit=unit,
        method=Method.MEASURED_HOST,
        verdict=Verdict.PASS if holds else Verdict.FAIL,
        why=f"golden output {spec.name!r}: {shown} off on {on}, {limit['value']:g} {unit} are allowed",
    )
