#!/usr/bin/env python3
"""Make the sandbox in which `edgeprune benchmark --device emulated-arm64` runs models.

    python tools/make_arm64_sandbox.py [--folder FOLDER]

It needs Debian or Ubuntu with qemu-user-static and debian-archive-keyring, no rights, and the
network: 48 MB are fetched, 145 MB stay on disk. One that is there and whole is left as it is.
"""

import argparse
import sys
from pathlib import Path

from edgeprune.devices.lookup import load_profile
from edgeprune.devices.reach import EmulatedReach
from edgeprune.devices.sandbox import MIRROR, make_sandbox
from edgeprune.errors import EdgepruneError, InputError


def main() -> int:
    """Make it; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the sandbox of an emulated 64-bit Arm.")
    parser.add_argument("--folder", type=Path, help="where [what the profile says]")
    parser.add_argument("--device", default="emulated-arm64", help="its profile [%(default)s]")
    parser.add_argument("--mirror", default=MIRROR, help="of Debian [%(default)s]")
    options = parser.parse_args()
    try:
        folder = options.folder or _folder(options.device)
        made = make_sandbox(
            folder, lambda line: print(line, file=sys.stderr), mirror=options.mirror
        )
    except EdgepruneError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(made.folder)
    return 0


def _folder(device: str) -> Path:
    reach = load_profile(device).reach
    if not isinstance(reach, EmulatedReach):
        raise InputError(f"device {device} is not emulated; name one whose backend is 'emulated'")
    return reach.folder


if __name__ == "__main__":
    sys.exit(main())
