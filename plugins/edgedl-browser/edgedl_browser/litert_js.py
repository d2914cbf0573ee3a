"""Whether LiteRT.js can start here: `__version__` is its own, and raises ImportError with what is missing."""

from edgedl_browser.places import version_of


def __getattr__(name: str) -> str:
    if name == "__version__":
        return version_of("@litertjs/core")
    raise AttributeError(name)
