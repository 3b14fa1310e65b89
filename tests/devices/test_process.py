"""Real programs that hang, talk without end, leave children, or are ended from elsewhere."""

import subprocess
import threading
import time
from pathlib import Path

import pytest

from edgeprune.devices import process
from edgeprune.devices.process import Stop, plain
from edgeprune.errors import EdgepruneError


def shell(script, seconds=30, **options):
    return process.run(["sh", "-c", script], seconds, **options)


def gone(path):
    """Whether the process whose number stands in the file has ended."""
    number = Path(path).read_text().strip()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = Path(f"/proc/{number}/status")
        try:
            if "\nState:\tZ" in status.read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_what_it_printed_and_how_it_ended():
    ended = shell("echo out; echo first >&2; echo last >&2; exit 3")
    assert (ended.code, ended.output, ended.said) == (3, "out\n", "last")
    assert ended.ending == "ended with exit code 3"
    assert not ended.late
    assert not ended.endless
    assert shell("kill -9 $$").ending == "died of SIGKILL"


def test_lines_that_are_taken_are_not_what_it_said():
    taken = []

    def take(line):
        taken.append(line)
        return line.startswith("[p]")

    ended = shell("echo '[p] 1' >&2; echo other >&2; echo '[p] 2' >&2; echo >&2", on_line=take)
    assert ended.said == "other"
    assert taken == ["[p] 1", "other", "[p] 2"]


def test_what_hangs_is_ended_with_all_it_started(tmp_path):
    script = f"trap '' TERM; sleep 60 & echo $! >{tmp_path}/child; wait"
    ended = shell(script, seconds=0.5)
    assert ended.late
    assert gone(tmp_path / "child")


def test_what_talks_without_end_is_ended():
    ended = shell("yes", most_bytes=1 << 20)
    assert ended.endless
    assert len(ended.output) <= 1 << 20


def test_a_line_without_end_is_cut():
    assert len(shell("head -c 1000000 /dev/zero | tr '\\0' x >&2").said) <= 1 << 16


def test_stop_ends_it_from_another_thread(tmp_path):
    stop = Stop()
    begun = tmp_path / "begun"

    def end():
        while not begun.exists():
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=end).start()
    with pytest.raises(EdgepruneError, match="interrupted"):
        shell(f"echo $$ >{begun}.part; mv {begun}.part {begun}; sleep 60", stop=stop)
    assert gone(begun)
    with pytest.raises(EdgepruneError, match="interrupted"):
        shell("sleep 60", stop=stop)


def test_input_that_stays_open_until_the_end(tmp_path):
    ended = shell("cat & sleep 0.2; kill $!; echo done", stdin=subprocess.PIPE)
    assert ended.output == "done\n"


def test_a_program_that_is_not_there():
    with pytest.raises(EdgepruneError, match="absent cannot be started: No such file"):
        process.run(["absent"], 1)


def test_bytes_that_are_no_text():
    assert shell(r"printf 'a\377b'").output == "a\ufffdb"
    assert plain("a\x1b[2J\x07\tb\n") == "a[2J\tb\n"
