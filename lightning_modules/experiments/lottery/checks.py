"""What of a lottery's settings, and of the config of its fits, can be known to be wrong before anything runs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.lottery_file import REWINDS, LotterySettings
from bnfree.tickets import RewindPoint, level_densities
from bnfree.tickets.schedule import check_density
from bnfree.tickets.scopes import get_scope
from bnfree.tickets.scores import get_score


def check_settings(settings: LotterySettings) -> tuple[float, ...]:
    """Refuses settings that nothing can be done with.

    Returns:
        The densities of all levels, 1 for the dense level 0.

    Raises:
        InputError: a value that is not known, out of range, or at odds with another one.
    """
    get_score(settings.score)
    get_scope(settings.scope)
    if settings.rewind not in REWINDS:
        raise InputError(f"lottery.rewind={settings.rewind!r} is not known; choose one of {', '.join(REWINDS)}.")
    if settings.find_in not in (None, "step1"):
        raise InputError(f"lottery.find_in={settings.find_in!r} is not known; give step1 or leave it out.")
    if settings.step1_options and settings.find_in is None:
        raise InputError("lottery.step1_options is for the fits of find_in: step1, which is not given.")
    point = RewindPoint.parse(settings.rewind_point)
    if settings.rewind == "none" and point.amount:
        raise InputError(
            f"lottery.rewind_point={settings.rewind_point} has no meaning with rewind: none, which keeps the weights "
            "and fine-tunes them; leave one of the two out."
        )
    if not settings.seeds or min(settings.seeds) < 0 or len(set(settings.seeds)) < len(settings.seeds):
        raise InputError(f"lottery.seeds={settings.seeds} must be different integers of at least 0.")
    if settings.densities is None:
        if settings.rate is None:
            raise InputError(
                "lottery says neither densities nor rate; give densities: [0.5, 0.2] or rate: 0.2 with levels or "
                "target_density."
            )
        return level_densities(settings.rate, settings.target_density, settings.levels)
    for key in ("rate", "levels", "target_density"):
        if getattr(settings, key) is not None:
            raise InputError(f"lottery gives both densities and {key}; leave one of the two out.")
    for density in settings.densities:
        check_density(density, "lottery.densities: ")
    densities = (1.0, *map(float, settings.densities))
    if any(later >= earlier for earlier, later in pairwise(densities)):
        raise InputError(f"lottery.densities={settings.densities} must fall from level to level, and begin below 1.")
    return densities


def check_fit(fit: dict[str, Any], settings: LotterySettings) -> None:
    """Refuses fits that levels cannot be made of.

    Args:
        fit: the config of the levels' fits, as plain values.
        settings: of the lottery.

    Raises:
        InputError: no checkpoints, split parameters, a ticket of its own, or a rewind point behind the end.
    """
    trainer = fit["trainer"]
    if len(other_callbacks(fit)) < len(callbacks_of(fit)):
        raise InputError("trainer.callbacks has a LotteryTicket, which bnfree lottery adds by itself; leave it out.")
    for key in ("fast_dev_run", "enable_checkpointing", "barebones"):
        if trainer.get(key) is False if key == "enable_checkpointing" else trainer.get(key):
            raise InputError(
                f"trainer.{key}={trainer[key]} leaves no checkpoint, which the next level is made from; leave it out."
            )
    strategy = trainer.get("strategy")
    name = str(strategy.get("class_path") if isinstance(strategy, dict) else strategy).lower()
    if any(word in name for word in ("fsdp", "deepspeed", "modelparallel")):
        raise InputError(
            f"trainer.strategy={name} splits parameters among processes, and pruning needs whole layers; set "
            "trainer.strategy to 'ddp'."
        )
    last = fit["last_checkpoint"]
    if last.get("filename") != "last" or last.get("dirpath") is not None or last.get("save_top_k") == 0:
        raise InputError("last_checkpoint is changed, but the next level is made from checkpoints/last.ckpt.")
    point, epochs = RewindPoint.parse(settings.rewind_point), trainer.get("max_epochs")
    if point.unit == "ep" and isinstance(epochs, int) and 0 <= epochs <= point.amount:
        raise InputError(
            f"lottery.rewind_point={settings.rewind_point} must lie before the end of training, which takes "
            f"trainer.max_epochs={epochs}."
        )
    optimizer = arguments_of(fit, "model").get("optimizer") or {}
    if settings.rewind == "none" and not isinstance((optimizer.get("init_args") or {}).get("lr"), int | float):
        raise InputError(
            "lottery.rewind=none fine-tunes at a tenth of model.optimizer.lr, which is not given; set it, or choose "
            "another rewind."
        )


def callbacks_of(settings: dict[str, Any]) -> list[Any]:
    """The entries of `trainer.callbacks` in a config, which may be a single one."""
    callbacks = settings["trainer"].get("callbacks") or []
    return [callbacks] if isinstance(callbacks, dict) else list(callbacks)


def is_ticket_callback(callback: Any) -> bool:
    """Whether an entry of `trainer.callbacks` is a `LotteryTicket`."""
    return isinstance(callback, dict) and str(callback.get("class_path")).endswith(".LotteryTicket")


def other_callbacks(settings: dict[str, Any]) -> list[Any]:
    """The same without every `LotteryTicket`."""
    return [callback for callback in callbacks_of(settings) if not is_ticket_callback(callback)]


def arguments_of(settings: dict[str, Any], section: str) -> dict[str, Any]:
    """The arguments of `model` or `data` in a config; changing them changes the config."""
    arguments: dict[str, Any] = (settings.get(section) or {}).get("init_args") or {}
    return arguments
