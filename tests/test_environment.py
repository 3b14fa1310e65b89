"""What the doctor says of packages that are there, and of those that are not."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from edgeprune.environment import _EXTRA_OF, _PACKAGES

ROOT = Path(__file__).parents[1]
CODE = """
import json
from edgeprune.environment import check_environment
print(json.dumps({check.name: vars(check) for check in check_environment()}))
"""


def checks(*options):
    command = [sys.executable, *options, "-c", CODE]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(ran.stdout)


def test_what_is_missing_is_named_with_how_to_install_it():
    # -S: without the site's packages.
    found = checks("-S")
    assert found["python"]["ok"]
    for name, extra in (
        ("tflite-micro", "[mcu]"),
        ("ethos-u-vela", "[npu]"),
        ("matplotlib", "[report]"),
        ("tensorflow", ""),
        ("constriction", ""),
    ):
        assert found[name]["ok"] is False
        assert found[name]["needed"] is (extra == "")
        assert found[name]["mend"] == f"pip install 'edgeprune{extra}'"
    assert "convert and run" not in found


def test_what_runs_models_for_devices_is_listed():
    found = checks()
    for name in ("tflite-micro", "ethos-u-vela"):
        assert found[name]["ok"] is True
        assert found[name]["found"].startswith(f"{metadata.version(name)}, ")
    assert found["convert and run"]["ok"] is True


def test_every_package_that_edgeprune_asks_for_is_listed():
    with (ROOT / "pyproject.toml").open("rb") as stream:
        project = tomllib.load(stream)["project"]
    asked = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    # click is at work already when the doctor is called.
    assert asked - {"click"} <= set(_PACKAGES)
    assert {name for name, (_, needed) in _PACKAGES.items() if needed} - {"keras"} <= asked
    for name, extra in _EXTRA_OF.items():
        assert any(line.startswith(name) for line in project["optional-dependencies"][extra])
