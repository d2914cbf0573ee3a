"""Whether onnxruntime-web can start here: `__version__` is that of its package, and raises ImportError otherwise."""

from edgedl_browser.places import version_of


def __getattr__(name: str) -> str:
    if name == "__version__":
        return version_of("onnxruntime-web")
    raise AttributeError(name)
