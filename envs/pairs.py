"""Generated pairs of texts with known answers, a quick proof that a model of sequences learns.

    reversal      qzab                     bazq
    dates         Thursday, March 5, 1987  1987-03-05
    number_words  4217                     four thousand two hundred seventeen

Held-out prompts are unseen in training: the split goes by the hash of the prompt, and no prompt occurs twice.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from envs.completions import CompletionConfig, Completions, Pair

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# fmt: off
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ["", "thousand", "million"]


class PairsConfig(CompletionConfig):
    """Keywords of `Pairs`."""

    kind: Literal["reversal", "dates", "number_words"] = Field(default="reversal", description="what to generate")
    tokens: Literal["chars", "words"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="chars", description="what is read and written one by one; digits and letters to convert stay single"
    )
    n: int = Field(default=20_000, ge=10, description="examples drawn; those that repeat a prompt are left out")
    data_seed: int = Field(default=0, ge=0, description="seed of the examples")
    min_length: int = Field(default=3, ge=1, description="reversal: fewest letters")
    max_length: int = Field(default=10, ge=1, description="reversal: most letters")
    largest: int = Field(default=999_999, ge=9, le=999_999_999, description="number_words: the largest number")

    @model_validator(mode="after")
    def _ordered(self) -> PairsConfig:
        if self.min_length > self.max_length:
            raise ValueError("min_length at most max_length")
        return self


def number_words(number: int) -> str:
    """Return a whole number in [0, 10^9) in English words: 4217 is "four thousand two hundred seventeen"."""
    words: list[str] = []
    for scale, name in enumerate(SCALES):
        group = number // 1000**scale % 1000
        if group:
            words = [*_below_thousand(group), *name.split(), *words]
    return " ".join(words) or UNITS[0]


def _below_thousand(number: int) -> list[str]:
    hundreds, rest = divmod(number, 100)
    words = [UNITS[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words.append(TENS[rest // 10])
        rest %= 10
    return [*words, UNITS[rest]] if rest else words


def written_dates(date: datetime.date) -> list[str]:
    """Return a date as people write it, in every manner that is used here."""
    day, month, year, weekday = date.day, MONTHS[date.month - 1], date.year, DAYS[date.weekday()]
    return [
        f"{month} {day}, {year}",
        f"{day} {month} {year}",
        f"{weekday}, {month} {day}, {year}",
        f"{month[:3]} {day} {year}",
        f"{day}.{date.month}.{year}",
    ]


def reversal(rng: np.random.Generator, config: PairsConfig) -> Pair:
    """Return letters, and the same from the last to the first."""
    letters = [
        LETTERS[i] for i in rng.integers(len(LETTERS), size=rng.integers(config.min_length, config.max_length + 1))
    ]
    between = " " * (config.tokens == "words")
    return between.join(letters), between.join(reversed(letters))


def dates(rng: np.random.Generator, config: PairsConfig) -> Pair:
    """Return a date of the years 1900 to 2099 as people write it, and in ISO 8601."""
    first, last = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
    date = datetime.date.fromordinal(int(rng.integers(first, last + 1)))
    ways = written_dates(date)
    return ways[rng.integers(len(ways))], date.isoformat()


def number(rng: np.random.Generator, config: PairsConfig) -> Pair:
    """Return a number in digits, and in words; each number of digits is as likely as any other."""
    digits = int(rng.integers(1, len(str(config.largest)) + 1))
    value = int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, min(10**digits, config.largest + 1)))
    return (" " * (config.tokens == "words")).join(str(value)), number_words(value)


KINDS: dict[str, Callable[[np.random.Generator, PairsConfig], Pair]] = {
    "reversal": reversal,
    "dates": dates,
    "number_words": number,
}


class Pairs(Completions):
    """Write the answer to a generated prompt. Keywords: `PairsConfig`."""

    Config = PairsConfig

    @classmethod
    def pairs(cls, config: PairsConfig) -> list[Pair]:
        """Return ``n`` examples; some may have the same prompt."""
        rng = np.random.default_rng(config.data_seed)
        return [KINDS[config.kind](rng, config) for _ in range(config.n)]
