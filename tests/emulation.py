"""A wheel on an emulated arm64 core, in the sysroot of `edgedl devices setup qemu-arm64`, found by its files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgedl" / "devices"  # not that of tests
FOLDER = Path(os.environ.get("EDGEDL_DEVICES_FOLDER") or CACHE) / "qemu-arm64"
CORE = next((FOLDER / "cores").glob("cortex-a*"), None)

needs_arm64 = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or CORE is None,
    reason="needs: apt-get install qemu-user; edgedl devices setup qemu-arm64",
)


def run_on_arm64(wheel, module, folder, *runtime):
    """The self-test of a wheel in a folder with the wheel, numpy and one runtime for arm64, by a Python for arm64."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
    site = folder / "site"
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    for name in ("numpy", "numpy.libs", *runtime):
        (site / name).symlink_to(FOLDER / "sysroot" / "site" / name)
    setting = {"PYTHONHOME": CORE / "usr", "PYTHONPATH": site, "LC_ALL": "C.UTF-8"}
    variables = [part for name, value in setting.items() for part in ("-E", f"{name}={value}")]
    (python,) = (FOLDER / "sysroot/root/usr/bin").glob("python3.*[0-9]")
    cpu = CORE.name.rpartition("-")[0]
    emulated = ["qemu-aarch64", "-cpu", cpu, "-L", str(CORE), *variables, str(python), "-m", module]
    done = subprocess.run(emulated, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)
