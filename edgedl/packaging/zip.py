"""The platform `zip`: the content as one archive, for whoever writes the app's side alone."""

from __future__ import annotations

from pathlib import Path

from edgedl.types import Content, Layout


class ZipPackager:
    """`NAME-VERSION.zip`."""

    platform = "zip"
    formats: tuple[str, ...] = ()

    def lay_out(self, content: Content, tree: Path) -> Layout:  # noqa: ARG002
        """Nothing but the content."""
        return Layout(file=f"{content.manifest['name']}-{content.manifest['version']}.zip")
