"""Reports as JSON, one HTML page, JUnit XML and tables for the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgedl import artifacts
from edgedl.errors import InputError
from edgedl.reporting import junit, page, text, views
from edgedl.types import Check, Method, Report, Verdict, to_json

FILES = ("report.json", "report.html")

__all__ = ["FILES", "as_json", "check_folder", "checks_from_json", "junit", "page", "read", "text", "write"]


def as_json(reports: Report | Sequence[Report], *, details: bool = False) -> dict[str, Any]:
    """One report as an object, several as `{"verdict", "reports"}` with the worst verdict; no NaN, no infinity.

    It follows `schemas/validation.json`; with `details` it is a `report.json` and follows `schemas/report.json`.
    """
    if isinstance(reports, Report):
        return _one(reports, details)
    if len(reports) == 1:
        return _one(reports[0], details)
    verdict = Verdict.worst([report.verdict for report in reports])
    return {"verdict": verdict.value, "reports": [_one(report, details) for report in reports]}


def write(reports: Report | Sequence[Report], folder: Path) -> list[Path]:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all. Returns the two paths.

    Raises InputError where the folder cannot be written or the page cannot be drawn; `report.json` is there by then.
    """
    data, drawn = (folder / name for name in FILES)
    _publish(data, json.dumps(as_json(reports, details=True), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _publish(drawn, page.render(reports))
    return [data, drawn]


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder to `write` into early: it is a file, or holds such a report. Raises InputError."""
    if folder.exists() and not folder.is_dir():
        message = f"{folder}: is a file; name a folder for the report"
        raise InputError(message)
    for name in FILES if folder.exists() else ():
        artifacts.check_output(folder / name, force=force)


def read(path: Path) -> list[Report]:
    """The reports of a `report.json`. Raises InputError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [_report(one) for one in found.get("reports", [found])]
    except OSError as e:
        message = f"{path}: cannot be read: {e.strerror}"
        raise InputError(message) from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        message = f"{path}: no report.json of edgedl ({type(e).__name__}: {e}); write one with edgedl validate --report"
        raise InputError(message) from e


def checks_from_json(found: Iterable[Mapping[str, Any]]) -> tuple[Check, ...]:
    """The checks that were written as JSON."""
    kinds = ((check, Method(check["method"]), Verdict(check["verdict"])) for check in found)
    return tuple(Check(**{**check, "method": method, "verdict": verdict}) for check, method, verdict in kinds)


def _report(found: dict[str, Any]) -> Report:
    head = {key: found[key] for key in ("artifact", "reference", "data")}
    checks = checks_from_json(found["checks"])
    return Report(**head, targets=tuple(found["targets"]), checks=checks, details=found.get("details", {}))


def _one(report: Report, details: bool) -> dict[str, Any]:
    head = {"verdict": report.verdict, **{f: getattr(report, f) for f in ("artifact", "reference", "data", "targets")}}
    body = head | {"checks": report.checks} | ({"details": report.details} if details else {})
    finite: dict[str, Any] = views.finite(to_json(body))
    return finite


def _publish(path: Path, content: str) -> None:
    """Write beside `path` and rename. Raises InputError: unwritable, disk full."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(content, encoding="utf-8")
        draft.replace(path)
    except OSError as e:
        message = f"{path}: cannot be written: {e.strerror}; choose another folder or free some space"
        raise InputError(message) from e
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
