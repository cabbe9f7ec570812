"""Prompts are tokenized once, and the memory of them is bounded."""

from typing import Any

import pytest

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import ChatMessage
from stream_workers.prompt_tokens import PromptTokens


class Tokenizer:
    """Characters are tokens."""

    chat_template: str | None = None

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return [ord(letter) for letter in text if letter != "~"]

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        assert options == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return self.encode("".join(f"{one['role']}:{one['content']};" for one in messages) + ">")


def hello() -> tuple[ChatMessage, ...]:
    return (ChatMessage(role="user", content="hello"),)


def test_each_prompt_is_tokenized_once() -> None:
    tokenizer = Tokenizer()
    tokenizer.chat_template = "any"
    tokens = PromptTokens(tokenizer, context=100)
    assert tokens.of("abc") == tokens.of("ab" + "c") == [97, 98, 99]
    assert tokens.of(hello()) == tokens.of(hello())
    assert tokenizer.encoded == ["abc", "user:hello;>"]


def test_the_least_recently_used_are_forgotten() -> None:
    tokenizer = Tokenizer()
    tokens = PromptTokens(tokenizer, context=100, remembered=6)
    for prompt in ("aa", "bb", "cc", "aa", "dd", "aa", "bb"):
        tokens.of(prompt)
    assert tokenizer.encoded == ["aa", "bb", "cc", "dd", "bb"]


def test_a_prompt_beyond_the_memory_still_works() -> None:
    tokens = PromptTokens(Tokenizer(), context=100, remembered=3)
    assert len(tokens.of("a" * 50)) == len(tokens.of("a" * 50)) == 50


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "empty_prompt"),
        ((), "empty_prompt"),
        ("~", "empty_prompt"),
        ("a" * 10, "prompt_too_long"),
        (hello(), "no_chat_template"),
    ],
)
def test_refusals(prompt: Any, code: str) -> None:
    tokens = PromptTokens(Tokenizer(), context=10)
    assert len(tokens.of("a" * 9)) == 9
    with pytest.raises(RequestRefused) as caught:
        tokens.of(prompt)
    assert caught.value.code == code
