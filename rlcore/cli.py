"""What the scripts call. Parsing and ``--help`` import no torch."""

from __future__ import annotations

import os

from rlcore import config as configs
from rlcore import helptext, plain_json, readable, runs
from rlcore.command import Parser, guarded, import_plugins, natural, number, positive, settings_of, unknown
from rlcore.errors import UserError, note


@guarded
def train(argv: list[str]) -> None:
    """Train an agent."""
    settings, words = settings_of(argv)
    parser = Parser("Train an agent on an environment or a task.", add_help=False)
    recipe = "a recipe's name, a YAML file, or a run's folder [cartpole_dqn]"
    parser.add_argument("config", nargs="*", metavar="CONFIG", help=recipe)
    parser.add_argument("--out", metavar="DIR", help="the run's folder [a fresh one under runs/]")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out (or CONFIG) [the latest]")
    text = "train K runs, each on another K-th held out, and report their mean (tasks over rows)"
    parser.add_argument("--folds", type=positive, metavar="K", help=text)
    text = "train several seeds in this process, their updates as one, and report their statistics"
    parser.add_argument("--seeds", metavar="N|A-B", help=text)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.plugins()
    parser.add_argument("-h", "--help", action="store_true", help="show this help message and exit")
    options, rest = parser.parse_known_args(words)
    if rest:
        raise unknown(rest[0], {*configs.Config.model_fields, *vars(options)} - {"config"})
    if len(options.config) > 1:
        raise UserError(f"expected one CONFIG, got {len(options.config)}: {' '.join(options.config)}")
    import_plugins(options.plugin)
    if options.help:
        kinds = "[--resume] [--folds K] [--seeds N|A-B] [--init RUN]"
        parser.usage = f"%(prog)s [CONFIG] [--seed N] [--out DIR] {kinds} [--NAME=VALUE ...]"
        parser.epilog = helptext.settings()
        return parser.print_help()
    config = options.config[0] if options.config else None
    if not options.resume:  # bad settings are told before torch is loaded
        configs.validate(configs.override(configs.read(config or "cartpole_dqn"), settings))
    if options.folds and options.seeds:
        raise UserError("--seeds: expected no --folds beside it")
    how = {"out": options.out, "resume": options.resume, "quiet": options.quiet}
    if options.folds:
        from rlcore import folds

        found = folds.train(config, options.folds, **how, **settings)
        return None if options.quiet else print(folds.table(found))
    from rlcore import api

    if options.seeds:
        from rlcore import together

        several = together.train(config, together.seeds(options.seeds), **how, **settings)
        evaluations = [one.result["evaluation"] for one in several]
        result = api.over_runs([one.path for one in several], evaluations)
        return None if options.quiet else print(readable.report(str(several[0].path.parent / "seed-*"), result))
    quiet = options.quiet or os.environ.get("RANK", "0") != "0"  # of torchrun's ranks the first one speaks
    run = api.train(config, out=options.out, resume=options.resume, quiet=quiet, **settings)
    if not quiet:
        print(readable.report(str(run.path), run.result["evaluation"]))
        why = f" (stopped: {run.result['stopped']})" if "stopped" in run.result else ""
        seconds = run.result["train_seconds"]
        print(f"{run.result['frames']} frames in {seconds:.1f} s of training{why}; run: {run.path}")


@guarded
def evaluate(argv: list[str]) -> None:
    """Evaluate runs."""
    parser = Parser("Play seeded greedy episodes (for tasks: the held-out split) and print their statistics.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, globs, or latest")
    count = "episodes per run [the run's eval.final_episodes: 100]"
    parser.add_argument("--episodes", type=positive, metavar="N", help=count)
    base = "episode i starts from SEED + i [the run's eval.final_seed: 10000; with --record: 2000000]"
    parser.add_argument("--seed", type=natural, help=base)
    parser.checkpoint()
    view = "first show or record one episode (of the first run)"
    parser.add_argument("--render", metavar="window|FILE.gif|FILE.mp4", help=view)
    steps = "write the steps of the episodes (of one run) to a file or a Minari data set, for agents to learn from"
    parser.add_argument("--record", metavar="FILE.npz|minari:ID", help=steps)
    parser.add_argument("--explore", action="store_true", help="with --record: act as at the end of training")
    wrong = "list the N worst mistakes too (of one run of a task)"
    parser.add_argument("--mistakes", type=positive, default=0, metavar="N", help=wrong)
    search = "write completions by a search with a beam of N; 0: greedily [the run's agent.beam]"
    parser.add_argument("--beam", type=natural, metavar="N", help=search)
    parser.plugins()
    parser.json()
    options = parser.read(argv)
    if options.record and (options.mistakes or options.beam is not None):
        raise UserError(f"--{'mistakes' if options.mistakes else 'beam'}: expected no --record beside it")
    if options.explore and not options.record:
        raise UserError("--explore: expected --record beside it; evaluations are greedy")
    import_plugins(options.plugin)
    folders = runs.resolve_all(options.runs)
    from rlcore import api

    if options.render:
        from rlcore.render import render

        total = render(api.load(folders[0], options.checkpoint), options.render, options.seed)
        note(f"rendered an episode with return {total:.6g} to {options.render}")
    if options.record:
        if len(folders) > 1:
            raise UserError(f"--record: expected one run, got {len(folders)}")
        chosen = (options.episodes, options.seed, options.checkpoint, options.explore)
        result = api.record(folders[0], options.record, *chosen)
        note(f"recorded {result['episodes']} episodes to {options.record}")
    else:
        chosen = (options.episodes, options.seed, options.checkpoint, options.mistakes, options.beam)
        result = api.evaluate(folders, *chosen)
    if options.json:
        return print(plain_json.dumps(result))
    mistakes = result.pop("mistakes", "")
    print("\n\n".join(filter(None, (readable.report(" ".join(options.runs), result), mistakes))))


@guarded
def predict(argv: list[str]) -> None:
    """Predict with a run."""
    parser = Parser("Print predictions for new rows, texts or images, or greedy actions for observations.")
    parser.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    inputs = (
        "by the kind of run: a CSV file or the NAME=VALUE pairs of one row; texts, or a file of them; images, or a "
        "folder of them; observations in JSON, such as '[0.1, 0, -0.2, 0]'"
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    parser.add_argument("--explain", metavar="FILE.png", help="draw which parts of the inputs drive the predictions")
    parser.checkpoint()
    parser.plugins()
    parser.json()
    options = parser.read(argv)
    import_plugins(options.plugin)
    folder = runs.resolve_one(options.run)
    from rlcore.predict import explain
    from rlcore.predict import predict as predicted

    if options.explain:
        predictions, explanations, remarks = explain(folder, options.inputs, options.explain, options.checkpoint)
        remarks = [*remarks, f"drew why to {options.explain}"]
        predictions = explanations if options.json else predictions
    else:
        predictions, remarks = predicted(folder, options.inputs, options.checkpoint)
    for remark in remarks:
        note(remark)
    print(
        plain_json.dumps(predictions, ensure_ascii=False)
        if options.json
        else "\n".join(map(readable.readable, predictions))
    )


@guarded
def generate(argv: list[str]) -> None:
    """Let a run write text."""
    parser = Parser("Print how a language model, or an agent that answers prompts, goes on from prompts.")
    parser.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    parser.add_argument("--prompt", metavar="TEXT", action="append", default=[], help="may be repeated")
    parser.add_argument("--file", metavar="FILE", help="a file with a prompt in every line")
    length = "most tokens [those that the run learnt; of a language model one context]"
    parser.add_argument("--length", type=positive, metavar="N", help=length)
    parser.add_argument("--temperature", type=number, default=0.0, metavar="T", help="0: the likeliest token [0]")
    parser.add_argument("--top-k", type=natural, default=0, metavar="K", help="draw from the K likeliest tokens only")
    nucleus = "draw from the likeliest tokens that together reach the probability P"
    parser.add_argument("--top-p", type=number, default=1.0, metavar="P", help=nucleus)
    parser.add_argument("--beam", type=natural, default=0, metavar="N", help="search with a beam of N completions")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="ends a text; may be repeated")
    parser.add_argument("--seed", type=natural, default=0, help="of drawing [0]")
    parser.add_argument("--n", type=positive, default=1, metavar="N", help="completions of each prompt [1]")
    parser.checkpoint()
    parser.plugins()
    parser.json()
    options = parser.read(argv)
    prompts = [*options.prompt, *(readable.lines(options.file) if options.file else [])]
    if not prompts:
        raise UserError("--prompt: got none, expected --prompt TEXT or --file FILE")
    import_plugins(options.plugin)
    folder = runs.resolve_one(options.run)
    from rlcore.generate import generate as generated

    given = ("length", "temperature", "top_k", "top_p", "beam", "stop", "seed", "n")
    texts = generated(folder, prompts, which=options.checkpoint, **{name: getattr(options, name) for name in given})
    if options.json:
        rows = [{"prompt": prompt, "completions": some} for prompt, some in zip(prompts, texts, strict=True)]
        return print(plain_json.dumps(rows, ensure_ascii=False))
    several = [text for some in texts for text in some]
    print(("\n---\n" if any("\n" in text for text in several) else "\n").join(several))
