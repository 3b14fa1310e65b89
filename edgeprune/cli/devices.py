"""`edgeprune devices`."""

import json
from typing import Any

import click

from edgeprune.cli.options import json_option


@click.command()
@json_option
def devices(as_json: bool) -> None:
    """List the devices known, and which can be reached now.

    Profiles of your own are .toml files in ./devices or the configuration folder; they may extend
    one of those listed and change, say, only the host.
    """
    from edgeprune.devices.lookup import list_profiles
    from edgeprune.devices.reachable import Reachability, probe
    from edgeprune.report.table import print_table
    from edgeprune.report.text import print_text

    listed = list_profiles()
    found = iter(probe([entry.profile for entry in listed if entry.profile is not None]))
    records: list[dict[str, Any]] = []
    for entry in listed:
        profile = entry.profile
        answer = Reachability(False, str(entry.error)) if profile is None else next(found)
        records.append(
            {
                "name": entry.name,
                "kind": None if profile is None else profile.kind,
                "backend": None if profile is None else profile.backend,
                "runtime": None if profile is None else profile.runtime,
                "description": None if profile is None else profile.description,
                "reachable": answer.reachable,
                "reason": answer.reason,
                "unsourced": [] if profile is None else list(profile.unsourced),
                "file": str(entry.file),
            }
        )
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    rows = [
        (
            record["name"],
            record["kind"],
            "yes" if record["reachable"] else "no",
            record["description"],
        )
        for record in records
    ]
    print_table(["device", "figures", "reachable", "description"], rows)
    missing: dict[str, list[str]] = {}
    for record in records:
        if not record["reachable"]:
            missing.setdefault(record["reason"], []).append(record["name"])
    for reason, names in missing.items():
        print_text(f"\nnot reachable: {', '.join(names)}\n  {reason}")
