"""What is installed, what is missing, and how to mend it."""

import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from edgeprune.devices.check import Check
from edgeprune.errors import EdgepruneError

# distribution -> (what it is for, needed by every user)
_PACKAGES = {
    "tensorflow": ("training and conversion", True),
    "keras": ("Keras 3 models", True),
    "tf-keras": ("tf_keras models", True),
    "tensorflow-model-optimization": ("quantization of tf_keras models", True),
    "ai-edge-litert": ("verifies and measures", True),
    "numpy": ("arrays", True),
    "kmeans1d": ("weight clustering", True),
    "constriction": ("`edgeprune pack`: codes weights", True),
    "zstandard": ("`edgeprune pack`: compresses the rest", True),
    "rich": ("tables and progress on a terminal", True),
    "ai-edge-quantizer": ("int4 weights, and modes by layer", False),
    "matplotlib": ("plots", False),
    "scikit-learn": ("the data of `edgeprune demo`", False),
    "tflite-micro": ("microcontrollers, simulated", False),
    "ethos-u-vela": ("Ethos-U accelerators, predicted", False),
}
_EXTRA_OF = {
    "ai-edge-quantizer": "int4",
    "matplotlib": "report",
    "scikit-learn": "demo",
    "tflite-micro": "mcu",
    "ethos-u-vela": "npu",
}


def check_environment() -> list[Check]:
    """Look at Python, the packages, Keras's backend, and convert and run a one-layer model."""
    checks = [_python(), *(_package(name) for name in _PACKAGES)]
    if all(check.ok for check in checks if check.needed):
        checks.append(_conversion())
    return checks


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.machine()}"
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, True, found, "" if ok else "install Python 3.11 or newer")


def _package(name: str) -> Check:
    purpose, needed = _PACKAGES[name]
    try:
        return Check(name, True, needed, f"{metadata.version(name)}, {purpose}")
    except metadata.PackageNotFoundError:
        extra = f"[{_EXTRA_OF[name]}]" if name in _EXTRA_OF else ""
        return Check(
            name,
            False,
            needed,
            f"not installed; it is {purpose}",
            f"pip install 'edgeprune{extra}'",
        )


def _conversion() -> Check:
    """Convert a real model and compare outputs: packages that are there may still not agree."""
    from edgeprune.export.convert import convert
    from edgeprune.models import import_keras

    name = "convert and run"
    try:
        keras = import_keras()
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        with tempfile.TemporaryDirectory() as folder:
            artifact = convert(model, Path(folder) / "probe.tflite")
    except EdgepruneError as error:
        return Check(name, False, True, str(error))
    except Exception as error:  # whatever a broken installation raises is the finding
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        return Check(name, False, True, found, "pip install --force-reinstall edgeprune")
    assert artifact.verification is not None
    return Check(
        name,
        True,
        True,
        f"a one-layer model, max abs error {artifact.verification.max_abs_error:.1e}",
    )
