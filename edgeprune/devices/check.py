"""What a look at an environment, here or on a device, found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
      name: what was looked at.
      ok: whether it is as it should be.
      needed: whether edgeprune cannot work without it.
      found: what was found, in words.
      mend: what to do; empty where nothing is to be done, or where `found` says it.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    mend: str = ""
