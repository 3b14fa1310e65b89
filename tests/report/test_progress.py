"""Progress on a terminal and elsewhere."""

import io

from edgeprune.report.progress import stage_progress, step_status


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_elsewhere_a_stage_is_a_line_at_each_end(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with stage_progress() as show, step_status() as say:
        say("load")
        for fraction in (0.0, 0.5, 1.0):
            show("sparsity", fraction, "accuracy 0.9" if fraction == 1.0 else "")
    assert stream.getvalue() == "sparsity ...\nsparsity done: accuracy 0.9\n"


def test_on_a_terminal_the_finished_stage_stays(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with stage_progress() as show:
        show("sparsity", 0.0, "")
        show("sparsity", 1.0, "accuracy 0.9")
    last = stream.getvalue().splitlines()[-2]
    assert "✓ sparsity" in last
    assert "100%" in last
    assert "accuracy 0.9" in last


def test_on_a_terminal_steps_are_named_and_gone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with step_status() as say:
        say("verify")
    assert "verify" in stream.getvalue()
