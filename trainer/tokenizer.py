"""Tokenizers in the form that transformers and vLLM load: one of our own made, any one used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.packing import Block, document, fill

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)
"""For a model that was taught no roles: the turns one after the other, to be continued."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context: int) -> Any:
    """A ``PreTrainedTokenizerFast`` with ids 0 for end of text and 1 for padding.

    Every byte is in the alphabet, so any text can be encoded and decoded without loss. Encoding
    adds no token of its own: a prompt is continued as it stands.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a saved model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(  # nosec B615 # a folder
        str(directory), local_files_only=True
    )


def encode_all(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    batch = list(texts)
    if not batch:
        return []
    # Texts longer than the context are cut into blocks later; the length warning says nothing.
    encoded = tokenizer(batch, add_special_tokens=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def text_blocks(tokenizer: Any, texts: Iterable[str], size: int) -> Iterator[Block]:
    """Whole documents as blocks of ``size`` tokens, the end-of-text token after each."""
    end = tokenizer.eos_token_id
    return fill((document([*ids, end]) for ids in encode_all(tokenizer, texts)), size)


def padding_of(tokenizer: Any) -> int:
    """The id to pad with: many tokenizers have no padding token, and any id does that is masked."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(tokenizer.eos_token_id)
