"""Which parts of an input drive a prediction or a choice: integrated gradients (Sundararajan, Taly and Yan 2017).

attribution_i = (x_i - b_i) * integral over t in [0, 1] of df/dx_i (b + t (x - b))
sum_i attribution_i = f(x) - f(b)                                                        completeness

x is the observation, b a baseline that tells nothing, f one number that the agent says: the prediction, the logit of
the class that is predicted, the Q-value (else the probability) of the action that is chosen, else the state's value.
Captum takes the integral by Gauss and Legendre's rule, over ever shorter parts of the way until the sum is right to
`TOLERANCE`. Tokens are no numbers: their embeddings are x, and a token's attribution is the sum over its embedding's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore import names
from rlcore.errors import UserError
from rlcore.normalize import Normalizer
from rlcore.run import Run
from rlcore.spaces import Tokens
from rlcore.tree import tmap

MOST = 6  # inputs in a picture
TOLERANCE = 0.005  # of |f(x) - f(b)|, or of the attributions' size where that is near 0
_POINTS, _PARTS = 32, 96  # of the integral over each part of the way, and parts at most

Score = Callable[[Any], Tensor]  # observations, tree (N, ...), to (N, K) numbers


class Explanation(NamedTuple):
    """Why one number is what it is and not what it is at the baseline."""

    prediction: Any  # as users read it
    of: str  # what number
    value: float  # f(x)
    baseline_value: float  # f(b)
    baseline: str  # b, in words
    attributions: np.ndarray[Any, Any]  # (F,) of features or tokens, (H, W) of an image
    names: list[str]  # (F,), as the input came; []: an image
    tokens: bool = False  # whether the names are those of a text, in its order
    image: np.ndarray[Any, Any] | None = None  # (H, W) or (H, W, 3), in [0, 1]

    def values(self) -> dict[str, Any]:
        """Return it as plain values; what has names is a list of pairs."""
        numbers = self.attributions.tolist()
        named = [list(pair) for pair in zip(self.names, numbers, strict=True)] if self.names else numbers
        left_out = ("attributions", "names", "tokens", "image")
        plain = {name: value for name, value in self._asdict().items() if name not in left_out}
        return {**plain, "attributions": named}


def explain(run: Run, inputs: Any) -> tuple[list[Explanation], list[str]]:
    """Explain what a run makes of inputs as `Run.predict` takes them; also return remarks on them.

    Raises:
        UserError: captum is not installed, the inputs do not fit, are too many, or the agent says no number of them.
    """
    if run.predictor is None:
        rows = [np.asarray(run.act(obs)) for obs in inputs]  # complains of what does not fit
        run.reset()
        obs = [_one(run.spec.obs_space, obs) for obs in inputs]
        named, remarks = [[] for _ in obs], []
        predictions: list[Any] = [row.tolist() for row in rows]
    else:
        many, remarks = run.predictor.encode(inputs)
        if not hasattr(run.predictor, "names"):
            raise _silent(run)
        predictions = run.predictor.decode(run.choose(many).cpu())
        obs = [many[i : i + 1].to(run.config.device) for i in range(len(many))]
        named = run.predictor.names(inputs, many)  # pyright: ignore[reportAttributeAccessIssue]
    if len(obs) > MOST:
        raise UserError(f"--explain: got {len(obs)} inputs, expected at most {MOST}")
    parts = zip(obs, named, predictions, strict=True)
    return [_explained(run, one, given, prediction) for one, given, prediction in parts], remarks


def _one(space: Any, obs: Any) -> Any:
    """Return an observation as a batch of one."""
    from rlcore.gym_vector import as_tensors

    return tmap(lambda x: x.unsqueeze(0), as_tensors(space, obs))


def _silent(run: Run) -> UserError:
    what = f"agent '{run.config.agent.name}' in environment '{run.config.env.id}'"
    return UserError(f"--explain: {what} says no number of an input; expected one that predicts, values or chooses")


def _explained(run: Run, obs: Any, given: list[str], prediction: Any) -> Explanation:
    """Explain one observation, a tree (1, ...)."""
    agent, space = run.agent, run.spec.obs_space
    score, index, of = _question(run, obs)
    about = {"prediction": prediction, "of": of}
    if isinstance(space, Tokens):
        attributions, value, at_baseline = of_tokens(agent, score, obs, index, space)
        kept = [i for i, token in enumerate(obs[0].tolist()) if token != space.pad]
        at = "the same text with padding for every token"
        return Explanation(
            **about, value=value, baseline_value=at_baseline, baseline=at, attributions=attributions[kept],
            names=[given[i] if given else str(int(obs[0, i])) for i in kept], tokens=True,
        )  # fmt: skip
    numbers, put, labels = _numbers(run, obs)
    baseline, at = _baseline(run, numbers)
    first = numbers.dim() == 4 and numbers.shape[1] <= 4 < numbers.shape[-1]  # frames, else channels last
    planes = (0 if first else -1) if numbers.dim() == 4 else None
    attributions, value, at_baseline = of_numbers(lambda x: score(put(x)), numbers, baseline, index, planes)
    scale, shift = _units(run, index) if run.predictor is not None else (1.0, 0.0)
    numbers, attributions = numbers[0], attributions * scale
    about |= {"value": value * scale + shift, "baseline_value": at_baseline * scale + shift, "baseline": at}
    if numbers.dim() > 1:
        rgb = numbers.dim() == 3 and not first and numbers.shape[-1] == 3
        shown = numbers if planes is None or rgb else numbers.mean(planes)
        return Explanation(**about, attributions=attributions, names=[], image=shown.cpu().numpy())
    grouped: dict[str, float] = {}
    came = [f"{name} = {x:.4g}" for name, x in zip(labels, numbers.tolist(), strict=True)]
    for name, share in zip(given or came, attributions.tolist(), strict=True):
        grouped[name] = grouped.get(name, 0.0) + share
    return Explanation(**about, attributions=np.array([*grouped.values()]), names=[*grouped])


def _question(run: Run, obs: Any) -> tuple[Score, int, str]:
    """Return which of an agent's numbers is explained: a function to all, the number's column, and its name."""
    agent, state = run.agent, run.agent.initial_state(1)

    def start(n: int) -> Any:
        return tmap(lambda x: x.expand(n, *x.shape[1:]), state)

    def acted(x: Any) -> Tensor:
        n = len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))
        return agent.act(x, start(n), {}, {}, None, explore=False).action

    def says(name: str) -> Score:
        def score(x: Any) -> Tensor:
            n = len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))
            found = agent.insight(x, start(n))[name]
            return found.unsqueeze(-1) if found.dim() == 1 else found

        return score

    with torch.no_grad():
        action, said = acted(obs), agent.insight(obs, state)
    if run.spec.loss is not None and action.is_floating_point() and action.dim() == 2:
        if action.shape[1] == 1:
            return acted, 0, getattr(run.predictor, "target", "prediction")
        assert run.predictor is not None
        chosen = int(action.argmax())
        label = run.predictor.decode(2.0 * torch.eye(action.shape[1]) - 1.0)[chosen]
        return acted, chosen, f"logit of '{label[0] if isinstance(label, list) else label}'"
    for name, text in (("q", "Q(s, {})"), ("probabilities", "probability of {}"), ("value", "V(s)")):
        if name in said and said[name].dim() <= 2:
            one = said[name].dim() == 1
            chosen = 0 if one else int(action)
            what = "a" if one else _called(run, chosen)
            return says(name), chosen, text.format(what)
    raise _silent(run)


def _called(run: Run, action: int) -> str:
    """Return the name of an action."""
    space: Any = run.spec.action_space
    if run.predictor is not None:
        return f"'{run.predictor.decode(torch.tensor([action]))[0]}'"
    return names.actions(run.config.env.id, int(space.n))[action]


def _numbers(run: Run, obs: Any) -> tuple[Tensor, Callable[[Tensor], Any], list[str]]:
    """Return an observation's numbers (1, ...), what makes observations of such, and the numbers' names.

    Raises:
        UserError: the space holds other things than numbers.
    """
    space, env_id = run.spec.obs_space, run.config.env.id
    if isinstance(space, spaces.Box):
        numbers = obs.float() / 255 if space.dtype == np.uint8 else obs.float()
        return numbers, lambda x: x, names.observations(env_id, int(np.prod(space.shape)))
    if isinstance(space, spaces.Dict) and all(isinstance(p, spaces.Box) and len(p.shape) == 1 for p in space.values()):
        sizes = {key: part.shape[0] for key, part in space.items()}  # pyright: ignore[reportOptionalSubscript]
        labels = [f"{key}[{i}]" for key, size in sizes.items() for i in range(size)]
        numbers = torch.cat([obs[key].float() for key in sizes], 1)
        return numbers, lambda x: dict(zip(sizes, x.split([*sizes.values()], 1), strict=True)), labels
    raise UserError(f"--explain: observations of {space} are no numbers to attribute to; expected a Box, or texts")


def _baseline(run: Run, numbers: Tensor) -> tuple[Tensor, str]:
    """Return an observation that tells nothing, (1, ...), and its name."""
    if numbers.dim() > 2:
        return torch.zeros_like(numbers), "a black image"
    if run.predictor is not None:
        return torch.zeros_like(numbers), "numbers at their mean in training, categories unknown"
    means = [part.shift for module in run.agent.children() if isinstance(module, Normalizer) for part in _parts(module)]
    if means:
        return torch.cat(means).unsqueeze(0), "the mean of the observations in training"
    return torch.zeros_like(numbers), "an observation of zeros"


def _parts(module: Normalizer) -> list[Any]:
    return [module] if module.parts is None else [part for one in module.parts for part in _parts(one)]  # type: ignore[arg-type]


def _units(run: Run, index: int) -> tuple[float, float]:
    """Return the factor and the summand that take a number predicted to the target's units; of logits 1 and 0."""
    assert run.predictor is not None
    space: Any = run.spec.action_space
    if not (isinstance(space, spaces.Box) and space.shape == (1,)):
        return 1.0, 0.0
    shift, one = run.predictor.decode(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    return (one - shift, shift) if isinstance(one, float) else (1.0, 0.0)


def of_numbers(
    score: Score, x: Tensor, baseline: Tensor, index: int, over: int | None = None
) -> tuple[np.ndarray[Any, Any], float, float]:
    """Return the attributions of x (1, ...), f(x) and f(baseline), for f the column ``index`` of ``score``.

    Attributions are summed over the axis ``over`` of x[0]. The integral over the way is the sum of those over its
    parts: a part whose attributions do not add up to its own difference of f is halved. Behind a normalisation f may
    jump within a millionth of the way.
    """
    from captum.attr import IntegratedGradients  # pyright: ignore[reportPrivateImportUsage]

    method = IntegratedGradients(score)

    @torch.no_grad()
    def f(at: float) -> float:
        return float(score(baseline + at * (x - baseline))[0, index])

    def part(start: float, end: float) -> tuple[np.ndarray[Any, Any], float]:
        """Return the attributions of a part of the way, and by how much they miss their sum."""
        ends = (baseline + at * (x - baseline) for at in (end, start))
        shares = method.attribute(*ends, target=index, n_steps=_POINTS)[0].detach()  # pyright: ignore
        found = shares.double().cpu().numpy()
        found = found if over is None else found.sum(over)
        return found, abs(found.sum() - (f(end) - f(start)))

    value, at_baseline = f(1.0), f(0.0)
    shares, missed = part(0.0, 1.0)
    parts = [(missed, 0.0, 1.0, shares)]
    while len(parts) < _PARTS:
        size = float(np.abs(np.sum([one[3] for one in parts], axis=0)).sum())
        if sum(one[0] for one in parts) <= TOLERANCE * max(abs(value - at_baseline), 0.1 * size):
            break
        worst = max(range(len(parts)), key=lambda i: parts[i][0])
        _, start, end, _ = parts.pop(worst)
        middle = (start + end) / 2
        for begins, ends in ((start, middle), (middle, end)):
            shares, missed = part(begins, ends)
            parts.append((missed, begins, ends, shares))
    return np.sum([one[3] for one in parts], axis=0), value, at_baseline


def of_tokens(
    agent: nn.Module, score: Score, tokens: Tensor, index: int, space: Tokens
) -> tuple[np.ndarray[Any, Any], float, float]:
    """Return the attributions (T,) of tokens (1, T), f(tokens) and f at the baseline: the same text of padding.

    The baseline replaces what the embedding returns; what begins and ends a text, and which places are empty, stay.
    """
    found = (getattr(module, "embedding", None) for module in agent.modules())
    layer = next((one for one in found if isinstance(one, nn.Embedding)), None)
    if layer is None:
        raise UserError("--explain: the network has no embedding of tokens to attribute to; expected an nn.Embedding")
    kept = torch.zeros_like(tokens, dtype=torch.bool)
    for special in (space.bos, space.eos):
        kept |= tokens == (-1 if special is None else special)
    x, baseline = (_embedded(score, layer, some) for some in (tokens, torch.where(kept, tokens, space.pad)))

    def replaced(embedded: Tensor) -> Tensor:
        with layer.register_forward_hook(lambda *_: embedded):
            return score(tokens.expand(len(embedded), -1))

    shares, value, at_baseline = of_numbers(replaced, x, baseline, index, -1)
    return by_token(shares, tokens.shape[1]), value, at_baseline


@torch.no_grad()
def _embedded(score: Score, layer: nn.Module, tokens: Tensor) -> Tensor:
    """Return what the layer makes of tokens (1, T) on the way to their scores, (1, places, width)."""
    seen: list[Any] = []
    with layer.register_forward_hook(lambda _, __, out: seen.append(out)):
        score(tokens)
    return seen[0]


def by_token(shares: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Return the attributions (T,) of tokens from those of T places, or of all n-grams, shorter ones first.

    An n-gram's share is split evenly among its tokens.
    """
    totals, start, size = np.zeros(length), 0, 1
    while start < len(shares):
        count = length - size + 1
        for offset in range(size):
            totals[offset : offset + count] += shares[start : start + count] / size
        start, size = start + count, size + 1
    return totals


def save(explanations: Sequence[Explanation], path: Path) -> None:
    """Draw explanations into a picture; see `rlcore.explain_picture`."""
    from rlcore import explain_picture

    explain_picture.save(explanations, path)
