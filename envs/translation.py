"""Translation: the sentences of one language are prompts, those of another their completions.

BLEU (Papineni et al. 2002) of greedy translations over a whole split is that of sacrebleu, on text as people read it.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pydantic import Field
from torch import Tensor

from envs.completions import CompletionConfig, Completions, CompletionTask, Pair
from envs.table import contents
from rlcore.errors import UserError
from rlcore.types import Example

SHIPPED = {"english_spanish": "eng_spa_nt.tsv.gz"}


class TranslationConfig(CompletionConfig):
    """Keywords of `Translation`."""

    path: str = Field(
        default="english_spanish",
        description="a TSV file without a header, gzipped or not, a sentence and its translation a line; what further "
        "columns hold is not read; or the shipped 'english_spanish'",
    )
    tokens: str = Field(
        default="bpe",
        description="one vocabulary for both languages: chars, bpe, wordpiece or words, learnt from the training "
        "split; or a pretrained tokenizer's folder",
    )
    lower: bool = Field(default=False, description="read and write lower case only")


class TranslationTask(CompletionTask):
    """Sentences and their translations."""

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return bleu (0 to 100) beside exact and token_accuracy."""
        written, wanted = (self.vocabulary.decode(outcomes[name]) for name in ("completion", "target"))
        return {"bleu": bleu(written, wanted), **super().metrics(outcomes)}


def bleu(written: list[str], wanted: list[str]) -> float:
    """Return the BLEU of a corpus of E translations against one reference each, between 0 and 100."""
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(written, [wanted]).score)


class Translation(Completions):
    """Translate a sentence. Keywords: `TranslationConfig`."""

    Config = TranslationConfig

    @classmethod
    def stamp(cls, config: TranslationConfig) -> tuple[int, ...]:
        """Return when the file was changed, and its size.

        Raises:
            UserError: there is no such file.
        """
        try:
            stat = _file(config.path).stat()
        except OSError as error:
            known = ", ".join(SHIPPED)
            raise UserError(f"{config.path}: got {error.strerror}, expected a TSV file, or one of: {known}") from None
        return stat.st_mtime_ns, stat.st_size

    @classmethod
    def pairs(cls, config: TranslationConfig) -> list[Pair]:
        """Return the sentences and their translations.

        Raises:
            UserError: the file cannot be read or is empty, or a line has no two texts.
        """
        text = contents(_file(config.path), config.path, "TSV file")
        pairs = []
        for i, line in enumerate((text.lower() if config.lower else text).split("\n"), 1):
            if line.strip():
                cells = [" ".join(cell.split()) for cell in line.split("\t")]
                if len(cells) < 2 or not cells[0] or not cells[1]:
                    raise UserError(f"{config.path} line {i}: expected two texts with a tab between, got '{line[:60]}'")
                pairs.append((cells[0], cells[1]))
        if not pairs:
            raise UserError(f"{config.path}: the file is empty, expected lines of two texts with a tab between")
        return pairs

    def make_task(self, config: TranslationConfig, example: Example) -> TranslationTask:
        """Return the task over the examples of this split."""
        return TranslationTask(example, self.prepared.spec(), self.prepared.vocabulary, config.reward == "graded")


def _file(path: str) -> Path:
    return Path(str(resources.files("envs") / "data" / SHIPPED[path])) if path in SHIPPED else Path(path)
