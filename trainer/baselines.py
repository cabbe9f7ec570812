"""Two classical language models for the evaluation table: an n-gram model and a recurrent one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from trainer.packing import IGNORED


class LstmLanguageModel(torch.nn.Module):
    """An LSTM over token embeddings (Zaremba et al. 2014), tied to its output. Next token."""

    def __init__(self, *, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)
        self.lstm = torch.nn.LSTM(width, width, num_layers=layers, batch_first=True)
        self.bias = torch.nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """``logits`` [batch, length, vocabulary]; with ``labels`` also the mean ``loss``.

        Padding stands at the end of a row, where it changes nothing before it, so that
        ``attention_mask`` is not looked at.
        """
        states, _state = self.lstm(self.embedding(input_ids))
        logits = states @ self.embedding.weight.T + self.bias
        found = {"logits": logits}
        if labels is not None:
            found["loss"] = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                labels[:, 1:].flatten(),
                ignore_index=IGNORED,
            )
        return found


class NgramModel:
    """Markov model of token ids, interpolated by Witten and Bell (1991); a whole distribution.

    A context that was never seen passes to the one shorter by a token, down to the uniform one.
    """

    def __init__(self, *, order: int, vocabulary: int) -> None:
        if order < 1:
            raise ValueError("an n-gram has at least one token")
        self.order = order
        self.vocabulary = vocabulary
        self._counts: dict[tuple[int, ...], int] = defaultdict(int)
        self._totals: dict[tuple[int, ...], int] = defaultdict(int)
        self._types: dict[tuple[int, ...], int] = defaultdict(int)

    def learn(self, texts: Iterable[Sequence[int]]) -> None:
        """Count the n-grams of token sequences; none crosses from one to the next."""
        for text in texts:
            for index, token in enumerate(text):
                for length in range(min(self.order - 1, index) + 1):
                    context = tuple(text[index - length : index])
                    self._count(context, token, 1)

    def _count(self, context: tuple[int, ...], token: int, number: int) -> None:
        run = (*context, token)
        if run not in self._counts:
            self._types[context] += 1
        self._counts[run] += number
        self._totals[context] += number

    def probability(self, context: Sequence[int], token: int) -> float:
        """Of ``token`` after ``context``, of which the last ``order - 1`` count."""
        found = 1 / self.vocabulary
        kept = tuple(context)[max(0, len(context) - self.order + 1) :]
        for length in range(len(kept) + 1):
            shorter = kept[len(kept) - length :]
            total = self._totals.get(shorter, 0)
            if not total:
                break
            types = self._types[shorter]
            count = self._counts.get((*shorter, token), 0)
            found = (count + types * found) / (total + types)
        return found

    def nats(self, text: Sequence[int]) -> float:
        """Negative log-likelihood of all tokens but the first, as other models are scored."""
        return -sum(
            math.log(self.probability(text[max(0, n - self.order + 1) : n], text[n]))
            for n in range(1, len(text))
        )

    @property
    def size(self) -> int:
        """Counts that are kept."""
        return len(self._counts)

    def save(self, directory: Path) -> None:
        """As ``ngram.safetensors``: for each length the runs [n, length] and their counts [n]."""
        from safetensors.numpy import save_file

        arrays = {"shape": np.array([self.order, self.vocabulary], dtype=np.int64)}
        for length in range(1, self.order + 1):
            runs = sorted(run for run in self._counts if len(run) == length)
            arrays[f"runs.{length}"] = np.array(runs, dtype=np.int64).reshape(-1, length)
            arrays[f"counts.{length}"] = np.array(
                [self._counts[run] for run in runs], dtype=np.int64
            )
        save_file(arrays, directory / "ngram.safetensors")

    @classmethod
    def load(cls, directory: Path) -> NgramModel:
        """What :meth:`save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(directory / "ngram.safetensors")
        order, vocabulary = arrays["shape"].tolist()
        model = cls(order=order, vocabulary=vocabulary)
        for length in range(1, order + 1):
            runs = arrays[f"runs.{length}"].tolist()
            counts = arrays[f"counts.{length}"].tolist()
            for run, number in zip(runs, counts, strict=True):
                model._count(tuple(run[:-1]), run[-1], number)
        return model
