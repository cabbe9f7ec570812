"""Prompts to tokens, once each: admission counts them, and generation needs them again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from jinja2 import TemplateError

from infra.contracts.errors import RequestRefused
from stream_workers.engine import Prompt


class PromptTokens:
    """A Hugging Face tokenizer with a memory of its latest results.

    ``remembered`` bounds the memory: so many tokens, of 36 bytes each.
    """

    def __init__(self, tokenizer: Any, *, context: int, remembered: int = 500_000) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._remembered = remembered
        self._kept: OrderedDict[Prompt, list[int]] = OrderedDict()
        self._size = 0

    def of(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, not to be changed. At least one, and fewer than the context holds.

        Raises:
            RequestRefused: ``empty_prompt``, ``prompt_too_long``, ``no_chat_template`` or
                ``invalid_messages``.
        """
        tokens = self._kept.get(prompt)
        if tokens is not None:
            self._kept.move_to_end(prompt)
            return tokens
        tokens = self._encode(prompt)
        if not tokens:
            raise RequestRefused("empty_prompt", "the prompt has no tokens")
        if len(tokens) >= self._context:
            raise RequestRefused(
                "prompt_too_long",
                f"the prompt has {len(tokens)} tokens; the model's context is {self._context}, "
                "and one place is needed for the answer",
            )
        self._kept[prompt] = tokens
        self._size += len(tokens)
        while self._size > self._remembered:
            self._size -= len(self._kept.popitem(last=False)[1])
        return tokens

    def _encode(self, prompt: Prompt) -> list[int]:
        """Text gets the tokenizer's special tokens; a chat template writes its own."""
        if not prompt:
            raise RequestRefused("empty_prompt", "the prompt is empty")
        if isinstance(prompt, str):
            return list(self._tokenizer.encode(prompt))
        if not getattr(self._tokenizer, "chat_template", None):
            raise RequestRefused(
                "no_chat_template", "the model's tokenizer has no chat template: send a prompt"
            )
        messages = [{"role": one.role, "content": one.content} for one in prompt]
        try:
            tokens = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise RequestRefused(
                "invalid_messages", f"the model's chat template refuses the messages: {error}"
            ) from error
        return list(tokens)
