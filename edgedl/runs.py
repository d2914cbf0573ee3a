"""A pipeline file done step by step in a run folder, which holds everything needed to repeat it.

    RUN/<step>/request.json   what was asked, with the hashes of the files it reads
    RUN/<step>/...            what the step made
    RUN/<step>/done.json      what it answered, with the hashes of what it made
    RUN/.steps.json           the steps of the file, in order: folders of steps that it had earlier stay

A step whose request is the same and whose files are as it left them is skipped. A step works in a folder of its own
that is renamed when it is done, so that after a kill the run goes on there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgedl import __version__, artifacts, data, pipeline, pipeline_file, plugins, reporting, worker
from edgedl.errors import InputError
from edgedl.pipeline_file import Step
from edgedl.types import Report, Verdict, to_json

DONE, STEPS = "done.json", ".steps.json"
Said = Callable[[str], None]


def run(file: str, *, out: str | None = None, said: Said = lambda _: None) -> tuple[dict[str, Any], list[Report]]:
    """Do a pipeline file: what `edgedl run --json` prints, and the reports. Raises what its steps raise."""
    path = Path(file)
    folder = Path(out) if out else path.with_suffix("")
    steps = pipeline_file.read(file, folder)
    _check_folder(folder, path)
    _check_places(folder, steps)
    reports, codes = [], []
    with _alone(folder):
        _warm(steps)
        _write_steps(folder, steps)
        for step in steps:
            _do(step, folder / step.name, path.parent, said)
            if step.function == "validate":
                (report,) = reporting.read(folder / step.name / "report.json")
                reports.append(report)
                codes.append(pipeline.exit_code(report.verdict, step.on_inconclusive))
        written = reporting.write(reports, folder) if reports else []
        if not reports and (page := folder / "report.html").exists():
            said(f"note: {page} is of an earlier run: the pipeline file has no [[validate]] any more")
    answer = {
        "verdict": Verdict.worst([r.verdict for r in reports]).value,
        "exit_code": 6 if 6 in codes else max(codes, default=0),
        "folder": str(folder),
        "steps": [step.name for step in steps],
        "report": next((str(p) for p in written if p.suffix == ".html"), None),
    }
    return answer, reports


def report(run: str, *, force: bool = False, said: Said = lambda _: None) -> list[Path]:
    """Write the page of a run folder again, from the validations that its file asked for last. Raises InputError."""
    folder = Path(run)
    done = {path.parent.name: path for path in sorted(folder.glob("*/report.json"))}
    asked = [name for name in _read_steps(folder, list(done)) if name in done]
    if not asked:
        message = f"{run}: no validation of its steps has been done in it: no */report.json"
        raise InputError(message)
    artifacts.check_output(folder / "report.html", force=force)
    for name in done:
        if name not in asked:
            said(f"note: {name} is left out: it was no step of the pipeline file any more when that was last run")
    return reporting.write([one for name in asked for one in reporting.read(done[name])], folder)


def _write_steps(folder: Path, steps: Sequence[Step]) -> None:
    part = worker.pool().scratch("steps") / STEPS
    part.write_text(json.dumps([step.name for step in steps]), encoding="utf-8")
    artifacts.publish({part: folder / STEPS})


def _read_steps(folder: Path, default: list[str]) -> list[str]:
    """The names of the steps of a run; `default` for one of a version that did not write them down."""
    try:
        names = json.loads((folder / STEPS).read_text(encoding="utf-8"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            message = f"is no list of names but {str(names)[:50]}"
            raise ValueError(message)
        return names
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as e:
        message = f"{folder / STEPS}: cannot be read: {e}; do edgedl run again"
        raise InputError(message) from e


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against another run, which would put its steps in place of ours. Raises InputError."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(worker.held(folder))
        except BlockingIOError as e:
            message = f"{folder}: another edgedl run works here; wait for it, or name another folder with -o"
            raise InputError(message) from e
        except OSError:  # a file system without locks
            pass
        yield


def _warm(steps: Sequence[Step]) -> None:
    """Load ahead what validation and its report will need, while the first step waits for TensorFlow."""
    judged = [step.arguments["artifact"] for step in steps if step.function == "validate"]
    for format_ in dict.fromkeys(artifacts.format_of(Path(artifact)) for artifact in judged):
        artifacts.warm(format_)
    if judged:
        reporting.page.warm()


def _check_folder(folder: Path, file: Path) -> None:
    if folder.exists() and not folder.is_dir():
        message = f"{folder}: is a file; name a folder for the run with -o"
        raise InputError(message)
    foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
    at_home = file.parent.resolve() == folder.resolve()
    if foreign and not at_home and not any((folder / name / "request.json").exists() for name in foreign):
        message = f"{folder}: holds {foreign[0]!r} and no run; name another folder with -o"
        raise InputError(message)
    with artifacts.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _check_places(folder: Path, steps: Sequence[Step]) -> None:
    """Nothing of the user's may lie where a step will put its own. Raises InputError before any step runs."""
    places = {folder / step.name: step.name for step in steps}
    ours = {place for place in places if any((place / name).exists() for name in ("request.json", DONE))}
    for place, name in places.items():
        if place.exists() and place not in ours:
            message = f"{place}: is no step of a run, and step {name!r} would replace it; name another folder with -o"
            raise InputError(message)
    reports = [folder / name for name in reporting.FILES]
    if not ours and (found := next((p for p in reports if p.exists()), None)):
        message = f"{found}: is of no run here, and would be replaced; name another folder with -o"
        raise InputError(message)


def _do(step: Step, place: Path, home: Path, said: Said) -> None:
    """Do a step in its own folder, or skip it where the same request is done; the pipeline file lies in `home`."""
    request = _request(step)
    digest = _digest(request, step, home)
    if _is_done(place, digest):
        said(f"{step.name}: done before, skipped")
        return
    said(f"{step.name} ...")
    part = place.with_name(f".{step.name}.part")
    with artifacts.writing(place):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "request.json").write_text(json.dumps(request, indent=2), encoding="utf-8")
    answer = getattr(pipeline, step.function)(
        **step.arguments, **({"out": part / step.out} if step.out is not None else {})
    )
    for note in (*([answer.verdict] if isinstance(answer, Report) else []), *(f"note: {n}" for n in _notes(answer))):
        said(f"  {note}")
    with artifacts.writing(place):
        _finish(part, place, digest, answer)


def _request(step: Step) -> dict[str, Any]:
    """What `request.json` holds: everything that the step's answer hangs on."""
    owners = {p.distribution: p.version for group in plugins.GROUPS for p in plugins.listing(group)}
    return {
        "edgedl": __version__,
        "plugins": owners,
        "function": step.function,
        "arguments": to_json(step.arguments),
        "reads": {str(p): data.path_sha256(p) for p in step.reads if p.exists()},
    }


def _digest(request: dict[str, Any], step: Step, home: Path) -> str:
    """Of a request with its paths as seen from `home`: the same from any directory, and where the project moved."""
    portable = {str(p): os.path.relpath(p, home) for p in step.reads}

    def seen(value: Any) -> Any:
        if isinstance(value, dict):
            return {seen(k): seen(v) for k, v in value.items()}
        return [seen(v) for v in value] if isinstance(value, list) else portable.get(value, value)

    found = request | {k: seen(request[k]) for k in ("arguments", "reads")}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _finish(part: Path, place: Path, digest: str, answer: Any) -> None:
    """Write down what a step answered and made, and give its folder its name."""
    if isinstance(answer, Report):
        facts = json.dumps(reporting.as_json(answer, details=True), indent=2)
        (part / "report.json").write_text(facts, encoding="utf-8")
    told = json.loads(json.dumps(to_json(answer)).replace(json.dumps(str(part))[1:-1], str(place)))
    done = {"request": digest, "made": _made(part), "answer": told}
    (part / DONE).write_text(json.dumps(done, indent=2), encoding="utf-8")
    old = place.with_name(f".{place.name}.old")  # out of the way at once: a kill must not leave half of it in place
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    part.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _made(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DONE)
    return {p.relative_to(folder).as_posix(): data.file_sha256(p) for p in files}


def _is_done(place: Path, digest: str) -> bool:
    try:
        done = json.loads((place / DONE).read_text(encoding="utf-8"))
        return bool(done["request"] == digest and done["made"].items() <= _made(place).items())
    except (OSError, ValueError, KeyError):
        return False


def _notes(answer: Any) -> Sequence[str]:
    if isinstance(answer, Report):
        return tuple(answer.details.get("notes", ()))
    if isinstance(answer, dict):
        return tuple(answer.get("notes", ()))
    return tuple(getattr(answer, "notes", ()))
