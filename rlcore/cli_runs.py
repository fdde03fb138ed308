"""What ``runs.py`` calls: everything about runs that are there already. Parsing imports no torch.

Each subcommand is a function that adds its options and one that acts on them; `runs` registers them all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlcore import plain_json, plain_yaml
from rlcore import runs as folders
from rlcore.command import Parser, guarded, import_plugins, positive

Command = Callable[[str, Callable[[Any], None], str], Parser]  # adds a subcommand


@guarded
def runs(argv: list[str]) -> None:
    """List, show, compare, draw and report runs."""
    parser = Parser("List the runs in a folder, show one, compare several, draw and report them.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, call: Callable[[Any], None], text: str) -> Parser:
        added: Parser = commands.add_parser(name, text=f"{text[0].upper()}{text[1:]}.", help=text)
        added.set_defaults(call=call)
        return added

    for options_of in (_list_options, _diff_options, _rank_options, _plot_options, _report_options):
        options_of(command)
    commands.metavar = "|".join(commands.choices)
    options = parser.read(argv)
    options.call(options)


def _runs(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, globs, or latest")


def _folder(parser: Parser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", help="where to look, however deep [runs]")
    text = "only runs whose column or setting has this value, such as status=finished (may be repeated)"
    parser.add_argument("--where", action="append", default=[], metavar="NAME=VALUE", help=text)


def _form(parser: Parser) -> None:
    form = parser.add_mutually_exclusive_group()
    for name in ("json", "csv"):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"print {name.upper()}")


# What there is


def _list_options(command: Command) -> None:
    listing = command("list", _list, "list every run under a folder, the broken ones too")
    _folder(listing)
    show = command("show", _show, "show all about one run")
    show.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    for parser in (listing, show):
        _form(parser)


def _list(options: Any) -> None:
    from rlcore import listing

    print(listing.shown(listing.listing(options.folder, options.where), options.form or "table"))


def _show(options: Any) -> None:
    from rlcore import listing

    about = folders.about(folders.resolve_one(options.run))
    if options.form == "csv":
        settings = [{"name": name, "value": value} for name, value in folders.configs.flatten(about).items()]
        return print(listing.written(settings, ("name", "value"), "csv"))
    print(plain_json.dumps(about) if options.form else plain_yaml.dump(about).rstrip())


# Comparing


def _diff_options(command: Command) -> None:
    diff = command("diff", _diff, "show in what two runs, or two groups of seeds, differ, and what came of it")
    text = "a run's folder, latest, or a glob of the seeds of one recipe"
    for side in ("a", "b"):
        diff.add_argument(side, metavar=side.upper(), help=text)
    _form(diff)


def _rank_options(command: Command) -> None:
    rank = command("rank", _rank, "rank recipes by the interquartile mean over their seeds")
    _runs(rank)
    best = command("best", _best, "print the folder of the best finished run")
    _folder(best)
    text = "a number of the final evaluation, of result.json, or the last one of a column of progress.csv [mean]"
    for parser in (rank, best):
        parser.add_argument("--metric", default="mean", metavar="NAME", help=text)
        parser.add_argument("--mode", choices=("max", "min"), default="max", help="which is best [max]")
        _form(parser)


def _diff(options: Any) -> None:
    from rlcore import compare

    print(compare.shown(compare.difference(options.a, options.b), options.form or "table"))


def _rank(options: Any) -> None:
    from rlcore import ranking

    ranked = ranking.rank(folders.resolve_all(options.runs), options.metric, options.mode)
    print(ranking.shown(ranked, options.metric, options.form or "table"))


def _best(options: Any) -> None:
    from rlcore import listing, ranking

    row = ranking.best(listing.listing(options.folder, options.where), options.metric, options.mode)
    if options.form == "csv":
        return print(listing.written([row], tuple(row), "csv"))
    print(plain_json.dumps(row) if options.form else row["run"])


# Pictures and pages


def _plot_options(command: Command) -> None:
    plot = command("plot", _plot, "draw learning curves, profiles, intervals and improvement of runs, as PNG and SVG")
    _runs(plot)
    plot.add_argument("--x", choices=("frames", "time"), default="frames", help="the curves' axis [frames]")
    text = "what makes a group: recipe, seed, or a setting such as optim.lr [recipe]"
    plot.add_argument("--group-by", default="recipe", metavar="FIELD", help=text)
    text = "a column of progress.csv [eval/return_mean, or train/episode_return without evaluations]"
    plot.add_argument("--metric", metavar="NAME", help=text)
    plot.add_argument("--out", type=Path, default=Path("plots"), metavar="DIR", help="where the files go [plots]")
    plot.json()


def _report_options(command: Command) -> None:
    report = command("report", _report, "write one HTML page about runs, that opens in any browser and loads nothing")
    _runs(report)
    where = "the page [report.html in the run's folder, or in the one that holds all the runs]"
    report.add_argument("--out", metavar="FILE.html", help=where)
    count = "episodes of each evaluation, played anew [those of result.json; tasks: the held-out split]"
    report.add_argument("--episodes", type=positive, metavar="N", help=count)
    report.checkpoint()
    report.plugins()


def _plot(options: Any) -> None:
    from rlcore import plots

    runs = folders.resolve_all(options.runs)
    drawn = plots.plot(runs, options.out, options.x, options.group_by, options.metric)
    print(plain_json.dumps(drawn) if options.json else "\n".join(drawn["files"]))


def _report(options: Any) -> None:
    import_plugins(options.plugin)
    found = folders.resolve_all(options.runs)
    from rlcore.report import report

    print(report(found, options.out, options.checkpoint, options.episodes))
