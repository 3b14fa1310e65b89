"""What ssh says, as OpenSSH says it, comes with what to do, and names the program once at most."""

import pytest

from edgeprune.devices.ssh_errors import explained, is_about_the_key, last_line

REFUSED = "ssh: connect to host pi port 22: Connection refused\r\n"


@pytest.mark.parametrize(
    ("said", "begin", "mend"),
    [
        (REFUSED, "pi is there, but no ssh server answers (connect to", "set reach.port"),
        (
            "ssh: Could not resolve hostname pi: Name or service not known\r\n",
            "no device is called pi in this network (Could not resolve",
            "set reach.host to its address",
        ),
        (
            "ssh: connect to host pi port 22: Connection timed out",
            "pi does not answer (connect to host pi port 22: Connection timed out)",
            "is it switched on",
        ),
        ("ssh: connect to host pi port 22: No route to host", "pi does not answer", "switched on"),
        ("me@pi: Permission denied (publickey).", "pi does not let this user in", "ssh-copy-id pi"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "the host key of pi is not the one known",
            "ssh-keygen -R pi",
        ),
        ("Host key verification failed.", "the host key of pi is not known yet", "`ssh pi`"),
        ("Bad owner or permissions on config", "no connection to pi (Bad owner", "`ssh pi true`"),
        ("", "no connection to pi (no message)", "`ssh pi true`"),
    ],
)
def test_every_failure_says_what_to_do(said, begin, mend):
    text = explained("pi", said)
    assert text.startswith(begin)
    assert mend in text
    assert "ssh: " not in text
    assert text.isprintable()


def test_only_keys_are_for_the_user_to_judge():
    assert is_about_the_key("Host key verification failed.")
    assert not is_about_the_key(REFUSED)


def test_the_last_line_cannot_move_the_cursor():
    assert last_line("first\n\033[2Jssh: x\n \n") == "[2Jssh: x"
    assert last_line(REFUSED) == "connect to host pi port 22: Connection refused"
