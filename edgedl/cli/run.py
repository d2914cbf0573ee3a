"""`edgedl run`."""

from __future__ import annotations

import click

from edgedl.cli import options


@click.command("run", short_help="Do the steps of a pipeline file.")
@click.argument("file", metavar="PIPELINE.toml")
@click.option("-o", "--out", metavar="RUN", help="Folder of the run; default: beside the file, without its suffix.")
@options.junit
@click.option("--force", is_flag=True, help="Overwrite the file of --junit.")
@options.as_json
def command(file: str, out: str | None, junit: str | None, force: bool, as_json: bool) -> int:
    """Do the steps of a pipeline file; go on after a kill, skip what is done."""
    from pathlib import Path

    from edgedl import worker
    from edgedl.errors import InputError

    if Path(file).is_dir():
        message = f"{file or 'the pipeline'}: is a folder; name a pipeline file, .toml"
        raise InputError(message)
    folder = Path(out) if out else Path(file).with_suffix("")
    if not any(folder.glob("*/done.json")):  # one that goes on may need no TensorFlow
        worker.warm()  # which loads while the rest does
    from edgedl import pipeline_file, runs
    from edgedl.reporting import text

    if junit and (folder.exists() or folder not in Path(junit).parents):  # it may lie in the folder that the run makes
        options.check_free(force, junit, file)
    found, reports = runs.run(file, out=out, said=options.say)
    lenient = [s.on_inconclusive for s in pipeline_file.read(file, folder) if s.function == "validate"]
    options.write_junit(junit, reports, lenient, force)
    options.show(*(table for report in reports for table in text.tables(report)))
    options.answer(found, as_json, f"{found['verdict']}: {found['report'] or found['folder']}")
    code: int = found["exit_code"]
    return code
