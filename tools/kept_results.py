"""The results of long runs, kept part by part in one JSON document under tools/results/."""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import edgeprune as ep
from edgeprune.files import atomic_path


def keep(results: Path, part: str, result: dict[str, Any]) -> None:
    """Write one part with the command and the machine that made it; other parts stay."""
    document = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    script = Path(sys.argv[0]).resolve().relative_to(Path(__file__).resolve().parents[1])
    document[part] = {
        **result,
        "command": " ".join(["python", script.as_posix(), *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "edgeprune": ep.__version__,
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(results) as path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
