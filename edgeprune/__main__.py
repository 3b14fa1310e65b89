"""Let `python -m edgeprune` run the command line."""

from edgeprune.cli import main

main()
