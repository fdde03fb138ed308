"""What ``tune.py`` calls. Parsing and ``--help`` import neither torch nor Optuna."""

from __future__ import annotations

from pathlib import Path

from rlcore import config as configs
from rlcore import plain_json
from rlcore.command import Parser, guarded, import_plugins, positive, settings_of, unknown
from rlcore.errors import UserError
from rlcore.search import spaces


@guarded
def tune(argv: list[str]) -> None:
    """Search for a recipe's settings."""
    settings, words = settings_of(argv)
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if rest:
        raise unknown(rest[0], {*configs.Config.model_fields, *vars(options)} - {"config"})
    if len(options.config) > 1:
        raise UserError(f"expected one CONFIG, got {len(options.config)}: {' '.join(options.config)}")
    import_plugins(options.plugin)
    from rlcore.search.tune import tune as search

    names = ("space", "trials", "sampler", "metric", "direction", "seeds", "jobs", "out", "resume", "quiet")
    given = {name: getattr(options, name) for name in names}
    prune = False if options.no_pruning else None
    recipe = options.config[0] if options.config else None
    found = search(recipe, **given, prune=prune, plugins=options.plugin, seed=settings.pop("seed", None), **settings)
    if options.json:
        return print(plain_json.dumps(found))
    if not options.quiet:
        print(Path(found["folder"], "table.txt").read_text(encoding="utf-8").rstrip())
        print(f"best recipe: {Path(found['folder'], 'best.yaml')}; all trials: {Path(found['folder'], 'trials.csv')}")
    return None


def _parser() -> Parser:
    parser = Parser("Search for the settings of a recipe; killed at any time, go on with --resume.")
    shipped = ", ".join(sorted(path.stem for path in spaces.folder().glob("*.yaml")))
    parser.usage = (
        "%(prog)s [CONFIG] --space SPACE [--trials N] [--metric NAME] [--out DIR] [--resume] [--NAME=VALUE ...]"
    )
    parser.epilog = "settings, which all trials share: see train.py --help; but --seed N: of the sampler's draws [0]"
    recipe = "a recipe's name, a YAML file, or a run's folder [cartpole_dqn]"
    parser.add_argument("config", nargs="*", metavar="CONFIG", help=recipe)
    parser.add_argument("--space", metavar="SPACE", help=f"what varies: a YAML file, or one of {shipped}")
    parser.add_argument("--trials", type=positive, metavar="N", help="trials, the recipe itself the first [50]")
    how = "grid, random, tpe (Parzen estimators) or gp (Gaussian processes) [tpe]"
    parser.add_argument("--sampler", metavar="NAME", help=how)
    metric = "frames_to, seconds_to (the recipe's stop.threshold), final (mean return) or final/NAME [final]"
    parser.add_argument("--metric", metavar="NAME", help=metric)
    parser.add_argument("--direction", metavar="max|min", help="which values are best [as the metric implies]")
    parser.add_argument("--seeds", metavar="A-B", help="of each trial's runs, from 100 up [1000-1002]")
    parser.add_argument("--no-pruning", action="store_true", help="train even hopeless trials to their end")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="worker processes [1]")
    parser.add_argument("--out", metavar="DIR", help="the search's folder [a fresh one under runs/]")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the search in --out; more --trials may be asked"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.plugins()
    parser.json()
    return parser
