"""What ``runs.py`` calls: everything about runs that are there already. Parsing imports no torch."""

from __future__ import annotations

import json

from rlcore import plain_yaml
from rlcore import runs as folders
from rlcore.command import Parser, guarded


@guarded
def runs(argv: list[str]) -> None:
    """List and show runs."""
    parser = Parser("List the runs in a folder, or show one.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show")
    listing = commands.add_parser("list", text="List runs.", help="a line for every run")
    listing.add_argument("folder", nargs="?", default="runs", help="where to look [runs]")
    show = commands.add_parser("show", text="Show a run.", help="all about one run")
    show.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    for command in (listing, show):
        command.json()
    options = parser.read(argv)
    if options.command == "show":
        about = folders.about(folders.resolve_one(options.run))
        print(json.dumps(about) if options.json else plain_yaml.dump(about).rstrip())
        return
    rows = folders.listing(options.folder)
    print(json.dumps(rows) if options.json else folders.table(rows))
