"""What ssh prints when no connection is made, in a line that says what to do."""

from edgeprune.devices import process

_NO_NAME = ("Could not resolve hostname", "Name or service not known")
_NO_ANSWER = (
    "no answer within",
    "timed out",
    "No route to host",
    "Network is unreachable",
    "Host is down",
)
_NO_KEY = "Host key verification failed"


def explained(host: str, said: str) -> str:
    """Return why ssh made no connection, and what to do.

    Args:
      host: as the profile names it.
      said: all that ssh printed.
    """
    if "HAS CHANGED" in said:
        return (
            f"the host key of {host} is not the one known: if the device was set up anew, forget "
            f"the old key with `ssh-keygen -R {host}` and connect once with `ssh {host}`; else "
            "another machine answers in its place"
        )
    if _NO_KEY in said:
        return (
            f"the host key of {host} is not known yet: connect once with `ssh {host}` and accept it"
        )
    last = last_line(said)
    if "Permission denied" in said:
        return (
            f"{host} does not let this user in ({last}); give it your key with "
            f"`ssh-copy-id {host}`, or set reach.user and reach.identity"
        )
    if any(words in said for words in _NO_NAME):
        return (
            f"no device is called {host} in this network ({last}); set reach.host to its address, "
            "or to a name that `ssh` knows"
        )
    if "Connection refused" in said:
        return (
            f"{host} is there, but no ssh server answers ({last}); start it on the device, or set "
            "reach.port"
        )
    if any(words in said for words in _NO_ANSWER):
        return f"{host} does not answer ({last}); is it switched on and in this network?"
    return f"no connection to {host} ({last}); try `ssh {host} true`"


def is_about_the_key(said: str) -> bool:
    """Tell whether it is for the user to say if the device is the right one."""
    return "HAS CHANGED" in said or _NO_KEY in said


def last_line(said: str) -> str:
    """Return the last line that ssh or a device printed, without the program's name."""
    lines = [line.strip() for line in process.plain(said).splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ") if lines else "no message"
