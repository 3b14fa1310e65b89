"""The `edgeprune` command: parse, call, print. TensorFlow loads inside the commands only."""

import io
import os
import signal
import sys

import click

from edgeprune import __version__
from edgeprune.cli.advise import advise
from edgeprune.cli.benchmark import benchmark
from edgeprune.cli.compress import compress
from edgeprune.cli.convert import convert
from edgeprune.cli.demo import demo
from edgeprune.cli.devices import devices
from edgeprune.cli.doctor import doctor
from edgeprune.cli.inspect import inspect
from edgeprune.cli.interrupt import ends_on_signals
from edgeprune.cli.names import as_typed
from edgeprune.cli.pack import pack, unpack
from edgeprune.cli.prune import prune
from edgeprune.cli.quiet import quiet_native_logs
from edgeprune.errors import ArgumentError, EdgepruneError
from edgeprune.modelfiles import first_line
from edgeprune.report.text import print_text

_INTERRUPTED = 128 + signal.SIGINT
_DEBUG = "EDGEPRUNE_DEBUG"


class _Group(click.Group):
    """Turns edgeprune's own errors into click's: one line on stderr, exit 1, or 2 if misused."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except EdgepruneError as error:
            command = self.commands[str(ctx.invoked_subcommand)]
            text = as_typed(str(error), command)
            if isinstance(error, ArgumentError):
                raise click.UsageError(text, click.Context(command, ctx, command.name)) from error
            raise click.ClickException(text) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeprune")
def cli() -> None:
    """Make Keras models small and fast on the device they will run on, and prove it."""


for command in (
    advise,
    benchmark,
    compress,
    convert,
    demo,
    devices,
    doctor,
    inspect,
    pack,
    prune,
    unpack,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line as a process: quiet logs, the documented exit codes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet_native_logs(), ends_on_signals():
            status = cli.main(standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        print_text(shown.getvalue().rstrip("\n"), sys.stderr)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print_text("Error: interrupted; nothing half-written was left", sys.stderr)
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        what = f"unexpected {type(error).__name__}: {first_line(error)}"
        print_text(f"Error: {what}; set {_DEBUG}=1 to see where, and please report it", sys.stderr)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
