"""Reports as JUnit XML, for the test page of a CI server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree

from edgedl.reporting import text
from edgedl.types import Check, Report, Verdict

OnInconclusive = Literal["fail", "warn", "pass"]
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def render(
    reports: Report | Sequence[Report], *, on_inconclusive: OnInconclusive | Sequence[OnInconclusive] = "fail"
) -> str:
    """JUnit XML: a suite a report, a case a check that counts, a property a check for information.

    `fail` and `unchecked` are failures, since neither is a pass and the command exits with 6 or 7. `inconclusive` is a
    failure, a skipped case under `on_inconclusive="warn"`, or a passed one under `"pass"`; its reason stays in the
    case. `on_inconclusive` is one for all reports, or one each. The failure's `type` is the verdict.
    """
    many = [reports] if isinstance(reports, Report) else list(reports)
    root = ElementTree.Element("testsuites", name="edgedl")
    totals = {"tests": 0, "failures": 0, "skipped": 0}
    each = [on_inconclusive] * len(many) if isinstance(on_inconclusive, str) else on_inconclusive
    for report, lenient in zip(many, each, strict=True):
        suite = _suite(report, lenient)
        root.append(suite)
        totals = {key: count + int(suite.attrib[key]) for key, count in totals.items()}
    root.attrib.update({key: str(count) for key, count in totals.items()}, errors="0")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(report: Report, on_inconclusive: OnInconclusive) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_clean(report.artifact))
    compared = {"reference": report.reference, "data": report.data}
    facts = [(key, value) for key, value in compared.items() if value] + [("verdict", report.verdict.value)]
    named = list(zip(_titles(report.checks), report.checks, strict=True))
    info = [(title, check) for title, check in named if check.verdict is Verdict.INFO]
    facts += [(title, f"{_measured(check)} ({check.method.value})") for title, check in info]
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in facts:
        ElementTree.SubElement(properties, "property", name=_clean(name), value=_clean(value))
    cases = [
        _case(report, title, check, on_inconclusive) for title, check in named if check.verdict is not Verdict.INFO
    ]
    suite.extend(cases)
    failures = sum(case.find("failure") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    suite.attrib |= {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
    return suite


def _case(report: Report, title: str, check: Check, on_inconclusive: OnInconclusive) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=_clean(report.artifact), name=_clean(title))
    limit = f", limit {text.limit(check)}" if check.limit is not None else ""
    facts = _clean(f"{_measured(check)}{limit} ({check.method.value})")
    message = _clean(f"{check.verdict.value}: {check.why or facts}")
    if check.verdict is Verdict.PASS or (check.verdict is Verdict.INCONCLUSIVE and on_inconclusive == "pass"):
        passed = f"{facts}: {_clean(check.why)}" if check.why else facts
        ElementTree.SubElement(case, "system-out").text = passed if check.verdict is Verdict.PASS else message
    elif check.verdict is Verdict.INCONCLUSIVE and on_inconclusive == "warn":
        ElementTree.SubElement(case, "skipped", message=message)
    else:
        ElementTree.SubElement(case, "failure", type=check.verdict.value, message=message).text = facts
    return case


def _measured(check: Check) -> str:
    if check.measured is None or check.low is None:
        return text.measured(check)
    return text.interval(check.measured, check.low, check.high, text.unit_of(check))


def _titles(checks: Sequence[Check]) -> list[str]:
    """A title a check, with its target; numbered where a limit of the user's stands beside one of the target's."""
    plain = [f"{check.name} [{check.target}]" if check.target else check.name for check in checks]
    seen: Counter[str] = Counter()
    titles = []
    for title in plain:
        seen[title] += 1
        titles.append(f"{title} ({seen[title]})" if seen[title] > 1 else title)
    return titles


def _clean(value: str) -> str:
    """`value` without the characters that XML 1.0 cannot hold."""
    return NOT_XML.sub("\ufffd", value)
