"""DeepSpeed around a cell: initialize, back-propagate, step; its sharded state as plain named fragments."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import distributed, ds_check
from pretrain.distributed import World
from pretrain.errors import UserError
from pretrain.recipe import OptimizerSection, RunRecipe

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "ds_configs"
MOMENTS = ("exp_avg", "exp_avg_sq")
NVME_VARIABLE = "MEMBART_NVME_PATH"


@dataclass(frozen=True)
class Fragment:
    """The part of one parameter whose optimizer state lives on this rank; views, so writing loads."""

    name: str
    start: int
    """First element, counted in the flattened parameter."""
    tensors: dict[str, Tensor]
    """`master` and, after the first step, `exp_avg` and `exp_avg_sq`: 1-D float32 of one length."""


def load_config(name_or_path: str) -> dict[str, Any]:
    """A DeepSpeed JSON of `ds_configs/` by name, or any by path.

    Raises:
        UserError: no such file, or not JSON.
    """
    path = Path(name_or_path) if name_or_path.endswith(".json") else CONFIG_FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIG_FOLDER.glob("*.json")))
        raise UserError(
            "no such DeepSpeed configuration",
            where=f"train.deepspeed={name_or_path}",
            mend=f"a path, or one of: {known}",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path), mend="mend the file") from None
    if not isinstance(config, dict):
        raise UserError("a DeepSpeed configuration is a JSON object", where=str(path), mend="mend the file")
    return config


def resolve_config(recipe: RunRecipe, world_size: int) -> dict[str, Any]:
    """The recipe's DeepSpeed JSON with every `auto` filled in.

    Raises:
        UserError: a value of the file contradicts the recipe, or DeepSpeed cannot train with it.
    """
    where = f"DeepSpeed configuration '{recipe.train.deepspeed}'"
    config = load_config(recipe.train.deepspeed)
    is_their_own = recipe.train.deepspeed.endswith(".json")
    if is_their_own:
        ds_check.refuse_unknown_keys(config, where)
    ours: dict[str, Any] = {
        "train_batch_size": recipe.agents,
        "train_micro_batch_size_per_gpu": recipe.agents // world_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optimizer.gradient_clipping,
        "torch_autocast": {"enabled": recipe.train.precision == "bf16", "dtype": "bfloat16"},
    }
    for section, owner in (("optimizer", "optimizer.*"), ("scheduler", "optimizer.schedule")):
        if section in config:
            raise UserError(
                f"'{section}' is set, but the recipe's {owner} decides it",
                where=where,
                mend=f"remove '{section}'",
            )
    for section in ("fp16", "bf16", "torch_autocast", "zero_optimization"):
        if not isinstance(config.get(section, {}), dict):
            raise UserError(
                f"'{section}' is {config[section]!r}, not an object", where=where, mend="mend the file"
            )
    if zero_stage(config) not in range(4):
        raise UserError(f"there is no ZeRO stage {zero_stage(config)}", where=where, mend="give 0, 1, 2 or 3")
    for section in ("fp16", "bf16"):
        if config.get(section, {}).get("enabled", False):
            raise UserError(
                f"'{section}.enabled' contradicts train.precision={recipe.train.precision}",
                where=where,
                mend=f"remove '{section}' and set train.precision",
            )
    for key, value in ours.items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        for inner, wanted in pairs:
            given = config.get(key, "auto") if inner is None else config.get(key, {}).get(inner, "auto")
            if given not in ("auto", wanted):
                path = key if inner is None else f"{key}.{inner}"
                raise UserError(
                    f"'{path}' is {given}, the recipe says {wanted}",
                    where=where,
                    mend=f'set "{path}": "auto"',
                )
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    _place_nvme(config, where)
    _refuse_leftover_auto(config, where)
    if is_their_own:
        ds_check.ask(config, where)
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """The stage that a DeepSpeed JSON asks for; -1 where it is not a whole number."""
    stage = config.get("zero_optimization", {}).get("stage", 0)
    return stage if isinstance(stage, int) else -1


def learning_rate(section: OptimizerSection, update: int, total: int) -> float:
    """Rate of update `update` (counted from 0): linear warm-up from 0, then linear to 0, or constant."""
    if update < section.warmup_steps:
        return section.lr * (update + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.lr
    return section.lr * max(total - update, 0) / max(total - section.warmup_steps, 1)


class Engine:
    """A DeepSpeed engine that takes several backward passes per step and reduces their gradients once."""

    def __init__(self, cell: nn.Module, recipe: RunRecipe, world: World) -> None:
        """Wrap `cell` (already holding its weights). Collective: every rank calls it."""
        deepspeed = _import_deepspeed()
        self.config = resolve_config(recipe, world.size)
        self.stage = zero_stage(self.config)
        self.world = world
        self._names = {id(p): _plain(name) for name, p in cell.named_parameters()}
        section = recipe.optimizer
        optimizer = torch.optim.AdamW(
            parameter_groups(cell, section), lr=section.lr, betas=section.betas, eps=section.eps
        )
        self.deepspeed, *_ = deepspeed.initialize(
            model=cell.to(world.device), optimizer=optimizer, config=self.config, dist_init_required=False
        )
        distributed.limit_collectives(recipe.train.collective_timeout)
        self.cell = cell

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.deepspeed(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        """Switch dropout on, or off with `mode` False."""
        self.deepspeed.train(mode)

    @contextlib.contextmanager
    def accumulation(self) -> Iterator[None]:
        """Everything back-propagated inside belongs to one optimizer step; reduced once on leaving.

        Stages 1 to 3 coalesce; stage 0 has no partitioned optimizer to coalesce in and reduces at the
        backward that is marked `last`.
        """
        if self.stage == 0:
            yield
        else:
            with self.deepspeed.coalesce_grad_reduction():
                try:
                    yield
                except BaseException:
                    # The reduction on leaving is collective, and the peers know nothing of this error yet.
                    for stages in ("zero12", "zero3"):
                        setattr(
                            self.deepspeed, f"_flush_coalesced_reduction_{stages}", lambda optimizer: None
                        )
                    raise
                self._drop_non_finite()

    def backward(self, scalar: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of `scalar`; `last` marks the final call of the optimizer step."""
        if self.stage == 0:
            self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(scalar)

    @property
    def loss_scale(self) -> float:
        """Factor that losses need: DeepSpeed averages gradients over ranks, ours are shares of a sum."""
        return float(self.world.size)

    def step(self, lr: float, rates: Mapping[str, float] | None = None) -> float | None:
        """Apply the accumulated gradients at rate `lr`, times `rates`; see `learning_rates`. Collective.

        Returns:
            The global gradient norm before clipping, or None when a gradient was not finite on some rank:
            then no parameter moved on any rank.
        """
        if self.stage == 0:
            self._drop_non_finite()
        if not self._finite:
            self.deepspeed.optimizer.zero_grad(set_to_none=True)
            return None
        wanted = self.learning_rates(lr, rates or {})
        for group in self._base_optimizer.param_groups:
            group["lr"] = wanted[group["name"]]
        if self.stage == 0:
            norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in self._trainable if p.grad is not None])
            )
            self.deepspeed.step()
            return norm
        self.deepspeed.step()
        return float(self.deepspeed.get_global_grad_norm())

    def learning_rates(self, lr: float, rates: Mapping[str, float]) -> dict[str, float]:
        """What `step` takes for each parameter group, by its name (empty: all that no key of `rates` names).

        Args:
            rates: factors of an update beside those of the recipe's `optimizer.rates`; absent ones are 1.
        """
        groups = self._base_optimizer.param_groups
        return {group["name"]: lr * group["rate"] * rates.get(group["name"], 1.0) for group in groups}

    def fragments(self) -> list[Fragment]:
        """The optimizer state that this rank owns; over all ranks every element of every trainable
        parameter appears exactly once."""
        zero = self.deepspeed.optimizer
        if self.stage == 0:
            return list(self._replicated_fragments())
        if self.stage == 3:
            return list(self._stage3_fragments(zero))
        return list(self._stage12_fragments(zero))

    def prepare_moments(self, updates: int) -> None:
        """Create the optimizer's moments, so that `fragments` shows them before the first step."""
        for flat in self._flat_tensors():
            self._base_optimizer.state[flat] = {
                "step": torch.tensor(float(updates)),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }

    def full_state(self, trainable: bool) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters (and buffers, when not `trainable`) by name, gathered one at a time.

        Collective at stage 3.
        """
        import deepspeed

        for name, parameter in self.cell.named_parameters():
            if parameter.requires_grad == trainable:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    yield _plain(name), parameter.detach()
        if not trainable:
            for name, buffer in self.cell.named_buffers():
                yield _plain(name), buffer.detach()

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.deepspeed.optimizer
        return optimizer.optimizer if self.stage > 0 else optimizer

    @property
    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.cell.parameters() if p.requires_grad]

    def _drop_non_finite(self) -> None:
        """Agree on whether every gradient of every rank is finite; clear them everywhere if not."""
        gradients = [p.grad for p in self._trainable if p.grad is not None]
        norms = torch.stack([n.to(self.world.device) for n in torch._foreach_norm(gradients)])
        self._finite = not distributed.any_rank(not bool(torch.isfinite(norms).all()), self.world.device)
        if not self._finite:
            torch._foreach_zero_(gradients)

    def _flat_tensors(self) -> list[Tensor]:
        zero = self.deepspeed.optimizer
        if self.stage == 0:
            return list(self._trainable)
        return list(
            zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        )

    def _replicated_fragments(self) -> Iterator[Fragment]:
        for parameter in self._trainable:
            share = -(-parameter.numel() // self.world.size)
            start = min(share * self.world.rank, parameter.numel())
            length = min(share, parameter.numel() - start)
            if length:
                yield self._fragment(parameter, start, parameter, start, length)

    def _stage12_fragments(self, zero: Any) -> Iterator[Fragment]:
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                    yield self._fragment(parameter, here.start, flat, there.start, here.numel)

    def _stage3_fragments(self, zero: Any) -> Iterator[Fragment]:
        for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            offset = 0
            for parameter in parameters:
                partition = parameter.partition_numel()
                start = partition * self.world.rank
                length = min(partition, parameter.ds_numel - start)
                if length > 0:
                    yield self._fragment(parameter, start, flat, offset, length)
                offset += partition

    def _fragment(
        self, parameter: nn.Parameter, start: int, flat: Tensor, offset: int, length: int
    ) -> Fragment:
        state = self._base_optimizer.state.get(flat, {})
        sources = {"master": flat.detach(), **{key: state[key] for key in MOMENTS if key in state}}
        tensors = {key: source.view(-1).narrow(0, offset, length) for key, source in sources.items()}
        return Fragment(self._names[id(parameter)], start, tensors)


def parameter_groups(cell: nn.Module, section: OptimizerSection) -> list[dict[str, Any]]:
    """Trainable parameters by `section.rates`, with and without weight decay (matrices, and the rest, unless
    `decay_all`). A group has `name`, the key of `rates` or empty, and `rate`, its factor."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for path, parameter in cell.named_parameters():
        if parameter.requires_grad:
            name = next((key for key in section.rates if key in path), "")
            decays = section.decay_all or parameter.dim() >= 2
            groups.setdefault((name, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": section.weight_decay if decays else 0.0,
            "name": name,
            "rate": section.rates.get(name, 1.0),
        }
        for (name, decays), parameters in sorted(
            groups.items(), key=lambda item: (item[0][0], not item[0][1])
        )
    ]


def _plain(name: str) -> str:
    return name.removeprefix("model.")


def _refuse_leftover_auto(node: Any, where: str, path: str = "") -> None:
    if node == "auto":
        raise UserError(f"'{path}' is \"auto\", which no recipe key fills", where=where, mend="give a value")
    if isinstance(node, dict):
        for key, value in node.items():
            _refuse_leftover_auto(value, where, f"{path}.{key}".lstrip("."))


def _place_nvme(config: dict[str, Any], where: str) -> None:
    """Give offloading to NVMe its folder, of this machine and not of the recipe: from the environment."""
    zero = config.get("zero_optimization", {})
    for section in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(section) or {}, dict):
            raise UserError(
                f"'zero_optimization.{section}' is {zero[section]!r}, not an object",
                where=where,
                mend="mend the file",
            )
    if (zero.get("offload_optimizer") or {}).get("device") == "nvme":
        raise UserError(
            "the optimizer is offloaded to NVMe, where its state cannot be saved from",
            where=where,
            mend='set "offload_optimizer.device": "cpu"; parameters may go to NVMe',
        )
    offload = zero.get("offload_param") or {}
    if offload.get("device") != "nvme":
        return
    if offload.get("nvme_path", "auto") == "auto":
        offload["nvme_path"] = os.environ.get(NVME_VARIABLE, "")
    folder = offload["nvme_path"]
    if not (folder and os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise UserError(
            f"no folder to write to at offload_param.nvme_path '{folder}'",
            where=where,
            mend=f"set {NVME_VARIABLE}=FOLDER on a fast local disk, or nvme_path in a copy of the file",
        )
    if not ds_check.has_async_io():
        raise UserError(
            "DeepSpeed cannot build its async_io operator on this machine, which NVMe needs",
            where=where,
            mend="install libaio's development files and a C++ compiler, or take zero3_offload",
        )


def _import_deepspeed() -> Any:
    """DeepSpeed without its start-up chatter, and without compiling a shared-memory collective on CPU."""
    ds_check.quiet()
    # DeepSpeed calls collectives by names that torch is about to rename: nothing a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    return deepspeed
