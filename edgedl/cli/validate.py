"""`edgedl validate`."""

from __future__ import annotations

from pathlib import Path

import click

from edgedl.cli import options


@click.command("validate", short_help="Compare an artifact with its reference.")
@click.argument("artifact")
@click.option("--reference", required=True, metavar="MODEL|ARTIFACT", help="What the artifact is compared with.")
@click.option("--data", required=True, metavar="DATA", help="Samples, with targets where accuracy is asked for.")
@click.option("--metric", "metrics", multiple=True, metavar="M", help="[OUTPUT=]NAME, or module:function of your own.")
@click.option("--max-drop", metavar="D", help="Largest loss allowed: 0.5pp, or a number in the metric's unit.")
@click.option("--gate", type=click.Choice(["prove", "detect"]), default="prove", show_default=True,
              help="Pass when the loss is shown to be small, or fail only when it is shown to be large.")  # fmt: skip
@click.option("--on-inconclusive", type=click.Choice(["fail", "warn", "pass"]), default="fail", show_default=True,
              help="fail exits with 7.")  # fmt: skip
@click.option("--limit", "limits", multiple=True, metavar="CHECK=VALUE", help="Upper limit, such as latency_ms=2.")
@click.option("--runtime", metavar="R", help="Runtime, a plugin's name; default: the target's.")
@click.option("--threads", type=click.IntRange(1), show_default="1", help="Threads of one inference.")
@click.option("--plan", is_flag=True, help="Say how many samples the gate needs, and run nothing.")
@click.option("--report", "report_folder", metavar="DIR", help="Write report.json and report.html into DIR.")
@options.targets
@options.runtime_version
@options.model_loading
@options.junit
@options.seed
@options.force
@options.as_json
def command(
    on_inconclusive: str, plan: bool, report_folder: str | None, junit: str | None, force: bool, as_json: bool,
    **given: object,
) -> int:  # fmt: skip
    """Compare ARTIFACT with its reference on DATA: accuracy, parity, size, latency."""
    from edgedl import pipeline, reporting
    from edgedl.cli.tables import plan_table
    from edgedl.reporting import text

    if plan:
        planned = pipeline.plan(**{key: given[key] for key in ("data", "max_drop", "metrics")})  # type: ignore[arg-type]
        options.show(plan_table(planned))
        needed = f"some {planned['samples']} decide" if planned["samples"] else "no number of them decides"
        options.answer(planned, as_json, f"{planned['have']} samples, {needed}")
        return 0
    options.check_free(force, junit, *(given[key] for key in ("artifact", "reference", "data")))  # type: ignore[arg-type]
    if report_folder:
        reporting.check_folder(Path(report_folder), force=force)
    report = pipeline.validate(**given)  # type: ignore[arg-type]
    options.write_junit(junit, [report], on_inconclusive, force)
    if report_folder:
        reporting.write(report, Path(report_folder))
    options.show(*text.tables(report))
    options.notes(report.details["notes"])
    verdict = report.verdict.value if text.is_judged(report) else "not judged"
    options.answer(reporting.as_json(report, details=False), as_json, verdict)
    return pipeline.exit_code(report.verdict, on_inconclusive)
