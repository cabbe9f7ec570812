"""A network trained by a recipe on blocks, in one process or several, on transformers' ``Trainer``.

A step is the same whatever the processes that share it: the same blocks, and a loss that is the
mean over all their counted labels. So a run in two processes is one in a single process whose
batch is twice as large, but for the order in which floats are added up. Not so for masks, spans
and dropout, which each rank draws for itself.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar

from infra.contracts.errors import ConfigurationError
from observability.instruments import (
    ARCHITECTURE,
    GRADIENT_NORM,
    LEARNING_RATE,
    OBJECTIVE,
    STEP_LOSS,
    TRAINED_TOKENS,
    TRAINING_STEPS,
)
from trainer.architectures import Architecture, Shape
from trainer.distributed import STEP_TIMEOUT, Ranks, started_by_launcher
from trainer.packing import IGNORED, Block
from trainer.progress import Say
from trainer.recipe import Recipe
from trainer.tokens.reading import epoch_order
from trainer.training import caching_restored, finite_loss, keep_large_buffers

WITHIN_DOCUMENTS = "feedloom-within-documents"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """``model`` has all weights; only rank 0 has one. ``samples`` of all ranks, in this call.

    ``history``: what was logged, by step, also before the checkpoint that it went on from.
    """

    model: Any
    epoch: float
    steps: int
    loss: float
    samples: int
    seconds: float
    history: Sequence[Mapping[str, Any]]


def check_recipe(recipe: Recipe) -> None:
    """Raises ConfigurationError for what this machine, or this number of processes, cannot do."""
    on_cpu = not torch.cuda.is_available()
    if recipe.fp16 and on_cpu:
        raise ConfigurationError("fp16 needs a GPU; on a CPU bf16 is there")
    if recipe.fsdp and recipe.deepspeed:
        raise ConfigurationError("fsdp and deepspeed both shard the model: set one of them")
    if recipe.fsdp_config and not recipe.fsdp:
        raise ConfigurationError("fsdp_config says how to shard, and fsdp is not set")
    version = _mapping("fsdp_config", recipe.fsdp_config).get("version", 2)
    if version == 1 and on_cpu:
        raise ConfigurationError("fsdp_config: version 1 needs GPUs; version 2 does not")
    if recipe.deepspeed:
        _mapping("deepspeed", recipe.deepspeed)
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigurationError(
                "the recipe sets deepspeed, which is not installed: `pip install deepspeed`"
            )
        if on_cpu:
            raise ConfigurationError("deepspeed needs a GPU; on CPUs fsdp shards")
    if (recipe.fsdp or recipe.deepspeed) and not started_by_launcher():
        raise ConfigurationError("fsdp and deepspeed need ranks: give --processes, or use torchrun")


def _mapping(name: str, value: str | dict[str, Any] | None) -> dict[str, Any]:
    if not isinstance(value, str):
        return value or {}
    try:
        found = json.loads(Path(value).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{name}: {value} is no JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{name}: {value} holds no JSON object")
    return found


class _Blocks(Dataset[Block]):
    """Token shards for a data loader."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Block:
        return self._blocks[int(index)]


class WholeSteps(Sampler[int]):
    """The order of an epoch, without what is left after its last step of ``step`` blocks.

    However a step is divided among ranks and batches, it then holds the same blocks: a rest would
    be filled up, or be a step of its own, differently in each case. Fewer blocks than one step are
    all taken. ``state`` is the Trainer's, whose epoch is right also after a checkpoint.
    """

    def __init__(self, count: int, *, step: int, seed: int, state: Any) -> None:
        self._count = count
        self._length = count // step * step or count
        self._seed = seed
        self._state = state

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self._count, seed=self._seed, epoch=int(self._state.epoch or 0))
        return iter(order[: self._length].tolist())


class BlockTrainer(Trainer):  # type: ignore[misc]
    """Trains on blocks, each counted label of a step alike on whatever rank and batch it is.

    transformers does so only for models whose loss divides by the ``num_items_in_batch`` that they
    are given. BERT, RoBERTa and T5 take it and divide by their own batch's labels, which adds up
    the batches of a step instead of averaging them; a plain module's loss is averaged by batch.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.model_accepts_loss_kwargs = True  # so that labels are counted, of all ranks

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Rank r has the r-th of each ``world_size`` batches that follow one another."""
        batch = self.args.train_batch_size
        step = batch * self.args.world_size * self.args.gradient_accumulation_steps
        order = WholeSteps(
            len(self.train_dataset), step=step, seed=self.args.seed, state=self.state
        )
        loader = DataLoader(
            self.train_dataset,
            batch_size=batch,
            sampler=order,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """This batch's part of the mean over ``num_items_in_batch`` labels, times the ranks.

        Gradients and logged losses are averaged over the ranks.
        """
        outputs = model(**inputs)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            counted = (inputs["labels"] != IGNORED).sum()
            loss = loss * counted * self.args.world_size / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class _Follower(TrainerCallback):  # type: ignore[misc]
    """Stops at a loss that is no number, and tells of the progress; rank 0 also as metrics."""

    def __init__(self, say: Say, family: str, *, tokens_per_step: int, first: bool) -> None:
        self._say = say
        self._attributes = {ARCHITECTURE: family}
        self._tokens_per_step = tokens_per_step
        self._first = first
        self._last = 0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        loss = finite_loss(state, logs)
        if loss is None:
            return
        self._say(f"training (loss {loss:.3f})", state.global_step, state.max_steps)
        if self._first:
            self._note(loss, state.global_step, logs or {})

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # What a checkpoint had done before was another process's.
        self._last = state.global_step

    def _note(self, loss: float, step: int, logs: Mapping[str, float]) -> None:
        steps = step - self._last
        self._last = step
        TRAINING_STEPS.add(steps, self._attributes)
        TRAINED_TOKENS.add(steps * self._tokens_per_step, self._attributes)
        STEP_LOSS.set(loss, {**self._attributes, OBJECTIVE: "all"})
        LEARNING_RATE.set(logs.get("learning_rate", 0.0), self._attributes)
        GRADIENT_NORM.set(logs.get("grad_norm", 0.0), self._attributes)


def train_blocks(
    family: Architecture,
    shape: Shape,
    recipe: Recipe,
    *,
    blocks: Sequence[Block],
    heldout: Sequence[Block],
    checkpoints: Path,
    logs: Path,
    ranks: Ranks,
    say: Say,
) -> Trained:
    """Train this rank's share, from the last checkpoint on if there is one.

    Raises TrainingDiverged when the loss becomes infinite or no number.
    """
    disable_progress_bar()  # of each file saved, among the caller's own
    keep_large_buffers()
    set_seed(recipe.seed)
    model = family.build(shape)
    if family.packs and recipe.torch_compile and torch.cuda.is_available():
        attend_within_documents(model)
    arguments = training_arguments(recipe, checkpoints)
    step = arguments.train_batch_size * arguments.world_size * recipe.gradient_accumulation_steps
    samples = min(step, len(blocks))
    follower = _Follower(
        say, family.name, tokens_per_step=samples * shape.context, first=ranks.first
    )
    callbacks: list[Any] = [follower]
    if ranks.first:
        callbacks.append(TensorBoardCallback(tb_writer=SummaryWriter(str(logs))))
    before, begin = _steps_of(checkpoints), time.monotonic()
    with caching_restored(model):
        trainer = BlockTrainer(
            model=model,
            args=arguments,
            train_dataset=_Blocks(blocks),
            eval_dataset=_Blocks(heldout),
            data_collator=family.collator(shape),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        torch.manual_seed(recipe.seed + ranks.rank)  # masks and dropout of its own
        result = trainer.train(resume_from_checkpoint=_checkpoint(checkpoints))
    seconds, steps = time.monotonic() - begin, trainer.state.global_step
    return Trained(
        model=_whole(trainer, model, family, shape, ranks),
        epoch=float(trainer.state.epoch or 0.0),
        steps=steps,
        loss=float(result.training_loss),
        samples=(steps - before) * samples,
        seconds=seconds,
        history=trainer.state.log_history,
    )


def attend_within_documents(model: Any) -> None:
    """Attention that passes over what a packed row's documents cannot see, instead of masking it.

    torch's flex attention, by a name of our own: transformers refuses its own name for it to
    families that do not claim to support it (GPT-2), though all it needs is their interface.
    """
    AttentionInterface.register(WITHIN_DOCUMENTS, flex_attention_forward)
    AttentionMaskInterface.register(WITHIN_DOCUMENTS, flex_attention_mask)
    model.set_attn_implementation(WITHIN_DOCUMENTS)


def _whole(trainer: Trainer, model: Any, family: Architecture, shape: Shape, ranks: Ranks) -> Any:
    """The model as it was built, of the shards of all ranks: on rank 0."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return model
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not ranks.first:
        return None
    whole = family.build(shape)
    whole.load_state_dict(state)
    return whole.to(trainer.args.device)


def training_arguments(recipe: Recipe, checkpoints: Path) -> TrainingArguments:
    """The recipe's names, and what does not depend on it."""
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=recipe.per_device_eval_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        gradient_checkpointing=recipe.gradient_checkpointing,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        logging_strategy="steps",
        logging_steps=recipe.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.save_steps,
        save_total_limit=recipe.save_total_limit,
        eval_strategy="steps" if recipe.eval_steps else "no",
        eval_steps=recipe.eval_steps or None,
        prediction_loss_only=True,
        fp16=recipe.fp16,
        bf16=recipe.bf16,
        torch_compile=recipe.torch_compile,
        fsdp=recipe.fsdp,
        fsdp_config=recipe.fsdp_config,
        deepspeed=recipe.deepspeed,
        ddp_find_unused_parameters=False,
        ddp_timeout=int(STEP_TIMEOUT.total_seconds()),
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        # A blocking copy would wait for all the GPU has to do, at every step.
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    if recipe.fsdp and arguments.use_cpu:
        _shard_on_cpus()
    return arguments


def _shard_on_cpus() -> None:
    """accelerate 1.15 passes over its FSDP plugin, saying nothing, where the device is a CPU
    (``AcceleratorState.__init__`` looks for it under other kinds), and torch shards there too.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _steps_of(folder: Path) -> int:
    found = _checkpoint(folder)
    if found is None:
        return 0
    return int(json.loads((Path(found) / "trainer_state.json").read_text())["global_step"])


def save(model: Any, directory: Path) -> None:
    """In transformers' form; a model that is none of theirs, its weights alone."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(str(directory), safe_serialization=True)
        return
    from safetensors.torch import save_model

    save_model(model, str(directory / "model.safetensors"))
