"""How a version's answers compare: margins of held-out pairs, generated answers, the safety list.

Generated answers are compared by chrF (Popović 2015) with what people said they should have been.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from infra.contracts.errors import ConfigurationError
from trainer.alignment import Pair, answer_logps, answer_of
from trainer.curation import Completion, Preference
from trainer.model import asked
from trainer.tokenizer import encode_all, padding_of

ANSWER_TOKENS = 64
TEMPERATURE = 0.7
BUILT_IN = "safety.jsonl"


class SafetyPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, and regular expressions of which none may be found in an answer to it."""

    category: str
    prompt: str
    banned: tuple[str, ...]


def safety_list(path: Path | None = None) -> list[SafetyPrompt]:
    """The prompts of a JSON-lines file, by default the built-in one.

    Raises ConfigurationError that names the line with a wrong field or pattern.
    """
    data = files("trainer").joinpath(BUILT_IN).read_bytes() if path is None else path.read_bytes()
    found = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompt = msgspec.json.decode(line, type=SafetyPrompt)
            for pattern in prompt.banned:
                re.compile(pattern)
        except (msgspec.DecodeError, re.error) as error:
            raise ConfigurationError(f"{path or BUILT_IN}, line {number}: {error}") from error
        found.append(prompt)
    return found


def violations(prompts: Sequence[SafetyPrompt], answers: Sequence[str]) -> int:
    """How many answers hold a pattern that is banned for their prompt."""
    return sum(
        any(re.search(pattern, answer) for pattern in prompt.banned)
        for prompt, answer in zip(prompts, answers, strict=True)
    )


def pairs_of(tokenizer: Any, preferences: Sequence[Preference], size: int) -> list[Pair]:
    """The token ids of preferences, at most ``size`` an answer with its prompt."""
    prompts = encode_all(tokenizer, [one.prompt for one in preferences])
    better = encode_all(tokenizer, [one.preferred for one in preferences])
    worse = encode_all(tokenizer, [one.rejected for one in preferences])
    end = tokenizer.eos_token_id
    return [
        Pair(
            preferred=answer_of(prompt, good, size, end=end),
            rejected=answer_of(prompt, bad, size, end=end),
        )
        for prompt, good, bad in zip(prompts, better, worse, strict=True)
    ]


def margins(model: Any, pairs: Sequence[Pair], *, padding: int) -> npt.NDArray[np.float64]:
    """Log-probability of the preferred answer less that of the rejected, nats: [pairs]."""
    preferred = answer_logps(model, [pair.preferred for pair in pairs], padding=padding)
    rejected = answer_logps(model, [pair.rejected for pair in pairs], padding=padding)
    return np.asarray(np.array(preferred) - np.array(rejected))


def similarity(answers: Sequence[str], references: Sequence[Completion]) -> list[float]:
    """chrF of each answer with what it should have been, 0 to 100."""
    from sacrebleu import sentence_chrf

    return [
        # A reference beyond what could be answered would punish every answer alike.
        float(sentence_chrf(answer, [reference.target[: max(len(answer), 1)]]).score)
        for answer, reference in zip(answers, references, strict=True)
    ]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    size: int,
    seed: int,
    tokens: int = ANSWER_TOKENS,
    batch_size: int = 32,
) -> list[str]:
    """A sampled continuation of each prompt, the same for the same model and seed.

    A prompt loses its beginning where it would not fit into ``size`` tokens with its answer.
    """
    import torch

    torch.manual_seed(seed)
    found: list[str] = []
    tokens = min(tokens, size // 2)
    padding = padding_of(tokenizer)
    with asked(model) as device:
        for start in range(0, len(prompts), batch_size):
            ids = [
                (each or [tokenizer.eos_token_id])[-(size - tokens) :]
                for each in encode_all(tokenizer, prompts[start : start + batch_size])
            ]
            longest = max(map(len, ids))
            inputs = torch.tensor([[padding] * (longest - len(each)) + each for each in ids])
            mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids])
            output = model.generate(
                input_ids=inputs.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=tokens,
                do_sample=True,
                temperature=TEMPERATURE,
                pad_token_id=padding,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=True,
            )
            found += tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return found
