"""Going on with an answer that another engine began. Knows tokens and text, but no model.

What an engine shows of its text follows vLLM's detokenizer (``v1/engine/detokenizer.py``): the
text of an incomplete character waits for the rest of it, and where stop strings are cut off the
answer, as many characters wait as could be the beginning of one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Literal

from infra.contracts.events.generation import SamplingParameters
from stream_workers.engine import Emitted, EmittedMismatch


def continuable(sampling: SamplingParameters) -> bool:
    """Whether an engine can go on from emitted tokens as if it had generated them itself.

    It cannot where its state is more than the tokens before: beams, other completions, a grammar;
    nor under penalties that tell the answer's tokens from the prompt's.
    """
    return (
        sampling.n == 1
        and sampling.beam_width is None
        and sampling.structured is None
        and sampling.presence_penalty == 0.0
        and sampling.frequency_penalty == 0.0
    )


def continued_seed(seed: int | None, tokens: int) -> int | None:
    """The seed for going on after ``tokens``: the old one would repeat the draws already made."""
    if seed is None:
        return None
    return (seed + 0x9E37_79B9_7F4A_7C15 * tokens) % 2**63


class StopScanner:
    """Finds the stop string that ends first, however the text is cut into pieces.

    Of two that end together the one listed first is found, as in vLLM.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self.overlap = max((len(one) for one in self._stop), default=1) - 1
        self._tail = ""
        self._length = 0

    def feed(self, piece: str, *, search: bool = True) -> tuple[int, int] | None:
        """Where in all the text so far a stop string that ends within ``piece`` lies, if any.

        Without ``search`` the piece may only be the beginning of one.
        """
        window = self._tail + piece
        before, start = len(self._tail), self._length - len(self._tail)
        found: tuple[int, int] | None = None
        if search and piece:
            for one in self._stop:
                at = window.find(one, max(0, before - len(one) + 1))
                if at >= 0 and (found is None or at + len(one) < found[1]):
                    found = at, at + len(one)
        self._length += len(piece)
        self._tail = window[-self.overlap :] if self.overlap else ""
        return None if found is None else (start + found[0], start + found[1])


class AnswerText:
    """The text of one answer as its tokens come: what may be shown, and where it stops."""

    def __init__(self, sampling: SamplingParameters, decode: Callable[[int], str]) -> None:
        """``decode`` gives the text that a next token adds; empty while a character is cut."""
        self._decode = decode
        self._include_stop = sampling.include_stop
        self._min_tokens = sampling.min_tokens
        self._scanner = StopScanner(sampling.stop) if sampling.stop else None
        self._held = self._scanner.overlap if self._scanner and not self._include_stop else 0
        self._pending = ""
        self._shown = 0
        self._tokens = 0

    def add(self, token_id: int, *, ends: bool = False) -> bool:
        """Whether a stop string is complete, which ends the answer with this token.

        ``ends``: the token itself ended it, so its text does not belong to it unless stops are
        to be included.
        """
        self._tokens += 1
        if ends and not self._include_stop:
            return False
        piece = self._decode(token_id)
        self._pending += piece
        if self._scanner is None:
            return False
        found = self._scanner.feed(piece, search=self._tokens > self._min_tokens)
        if found is None:
            return False
        end = found[1] if self._include_stop else found[0]
        self._pending = self._pending[: max(0, end - self._shown)]
        return True

    def extend(self, token_ids: Sequence[int], *, ends: bool) -> tuple[int, bool]:
        """Add tokens until a stop string is complete: how many that took, and whether it is.

        ``ends``: the last one ended the answer, as in ``add``.
        """
        last = len(token_ids)
        for count, token_id in enumerate(token_ids, start=1):
            if self.add(token_id, ends=ends and count == last):
                return count, True
        return last, False

    def take(self, *, finished: bool) -> str:
        """The text that may be shown and was not taken yet; all of it when ``finished``."""
        size = len(self._pending) if finished else max(0, len(self._pending) - self._held)
        text, self._pending = self._pending[:size], self._pending[size:]
        self._shown += size
        return text

    def skip(self, text: str) -> bool:
        """Take ``text`` as shown already; False if the answer does not begin with it."""
        if not self._pending.startswith(text):
            return False
        self._pending = self._pending[len(text) :]
        self._shown += len(text)
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """An answer after its emitted tokens: the text still owed, and how it ended if it has."""

    answer: AnswerText
    owed: str
    finish_reason: Literal["stop", "length"] | None


def resume(
    emitted: Emitted,
    sampling: SamplingParameters,
    decode: Callable[[int], str],
    *,
    ending: Container[int],
    limit: int,
) -> Resumed:
    """Take the emitted tokens through the rules that they went through where they were made.

    ``ending`` are the tokens that end an answer (EOS, stop tokens), ``limit`` is how many tokens
    ``max_tokens`` and the context allow. Raises EmittedMismatch.
    """
    answer = AnswerText(sampling, decode)
    reason: Literal["stop", "length"] | None = None
    for count, token_id in enumerate(emitted.token_ids, start=1):
        if reason is not None:
            raise EmittedMismatch("tokens were emitted after the answer's end")
        ends = token_id in ending and count > sampling.min_tokens
        if answer.add(token_id, ends=ends) or ends:
            reason = "stop"
    if reason is None and len(emitted.token_ids) >= limit:
        reason = "length"
    if not answer.skip(emitted.text):
        raise EmittedMismatch("the emitted text is not that of the emitted tokens")
    return Resumed(
        answer=answer, owed=answer.take(finished=reason is not None), finish_reason=reason
    )
