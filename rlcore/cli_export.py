"""What ``export.py`` calls. Parsing and ``--help`` import no torch."""

from __future__ import annotations

from typing import Any

from rlcore import plain_json, runs
from rlcore.command import Parser, guarded, import_plugins, number, positive
from rlcore.errors import note


@guarded
def export(argv: list[str]) -> None:
    """Export a run's agent."""
    parser = Parser("Write a run's agent to a file that other programs run, checked against the agent.")
    parser.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    kinds = "onnx, pt2 (torch.export), torchscript, or safetensors, the weights with all settings [onnx]"
    parser.add_argument("--format", metavar="FORMAT", default="onnx", help=kinds)
    parser.add_argument("--out", metavar="FILE", help="what to write [RUN/export/model.onnx, or as the format is]")
    variants = "int8 (onnx only) or bf16 weights; prints size, latency and score before and after"
    parser.add_argument("--quantize", metavar="int8|bf16", help=variants)
    smallest = "zero this fraction of the weights, the smallest; prints the same table"
    parser.add_argument("--prune", metavar="FRACTION", type=number, default=0.0, help=smallest)
    parser.add_argument("--opset", metavar="N", type=positive, help="of onnx [torch's default]")
    count = "to play for the table [the run's eval.final_episodes: 100]"
    parser.add_argument("--episodes", type=positive, metavar="N", help=count)
    parser.checkpoint()
    parser.plugins()
    parser.json()
    options = parser.read(argv)
    import_plugins(options.plugin)
    folder = runs.resolve_one(options.run)
    from rlcore.export import export as exported

    given = (options.format, options.out, options.checkpoint, options.quantize, options.prune, options.opset)
    path, about = exported(folder, *given, options.episodes)
    if options.json:
        return print(plain_json.dumps({"path": str(path), **about}))
    checked, rows = about["checked"], about.get("before_and_after", [])
    same = checked["equal_actions"]
    actions = "" if same is None else f", equal actions: {100 * same:.4g} %"
    print(
        f"{path}: differs from the agent by {checked['largest']:.2g} on {checked['observations']} observations{actions}"
    )
    if rows:
        print(table(rows))
        kept(rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows of before and after as text."""
    scores = [name for name in ("return", "accuracy") if name in rows[0]]
    lines = [["", "size KiB", "gzip KiB", "latency ms", *scores]]
    for row in rows:
        sizes = [f"{row[name] / 1024:.1f}" for name in ("bytes", "compressed_bytes")]
        lines.append([row["variant"], *sizes, f"{row['latency_ms']:.3f}", *(f"{row[name]:.5g}" for name in scores)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[x.rjust(widths[i]) if i else x.ljust(widths[0]) for i, x in enumerate(line)] for line in lines]
    return "\n".join("  ".join(line) for line in padded)


def kept(rows: list[dict[str, Any]]) -> None:
    """Warn where a variant loses more of its score than most want to pay."""
    for name, least in (("accuracy", 0.99), ("return", 0.98)):
        if name in rows[0]:
            before, after = rows[0][name], rows[1][name]
            if after < before - (1 - least) * abs(before):
                note(f"the {name} falls from {before:.5g} to {after:.5g}, by more than {100 * (1 - least):.0f} %")
            return
