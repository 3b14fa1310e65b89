"""Signals end a command wherever they strike, finalizers and native callbacks included."""

import os
import signal
import subprocess
import sys

import pytest

# Raises the signal inside a finalizer, where Python drops exceptions.
IN_FINALIZER = """
import os, signal, sys, time
import click
from edgeprune.cli import cli, main

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.01)

@cli.command()
def work():
    thing = Finalized()
    del thing
    for _ in range(100):
        time.sleep(0.1)
    click.echo("went on")

sys.argv = ["edgeprune", "work"]
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_a_finalizer_is_not_lost(name):
    command = [sys.executable, "-c", IN_FINALIZER.format(name=name)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 130
    assert ran.stdout == ""
    # click ends the line that shows ^C first
    assert ran.stderr == "\nError: interrupted; nothing half-written was left\n"


UNEXPECTED = """
import sys
from edgeprune.cli import cli, main

@cli.command()
def work():
    raise RuntimeError("first line\\nsecond line")

sys.argv = ["edgeprune", "work"]
main()
"""


def test_what_nobody_expected_is_one_line_too():
    command = [sys.executable, "-c", UNEXPECTED]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr == (
        "Error: unexpected RuntimeError: first line second line; set EDGEPRUNE_DEBUG=1 to see "
        "where, and please report it\n"
    )
    debug = {**os.environ, "EDGEPRUNE_DEBUG": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=debug)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr


def test_sigterm_removes_what_was_begun(tmp_path):
    import keras

    keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)]).save(tmp_path / "m.keras")
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["convert", str(tmp_path / "m.keras"), "-o", str(out / "m.tflite")]
    code = (
        "import os, signal, threading\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        "import sys\n"
        f"sys.argv = ['edgeprune', *{arguments!r}]\n"
        "from edgeprune.cli import main\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.endswith("Error: interrupted; nothing half-written was left\n")
    assert not list(out.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
