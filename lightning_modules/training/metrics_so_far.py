"""What an unfinished epoch has logged so far, in a form that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric

REDUCTIONS: dict[str, Any] = {"mean": torch.mean, "sum": torch.sum, "max": torch.max, "min": torch.min}
PLAIN = (
    "fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx", "dataloader_idx",
    "metric_attribute",
)  # fmt: skip


def metrics_so_far(trainer: Trainer) -> dict[str, Any]:
    """Sums of the training metrics of all processes; to be called in every process, at the same moment.

    Lightning's checkpoints leave them out: the means of an epoch that is resumed in its middle would be those of its
    rest.

    Args:
        trainer: in `fit`.

    Returns:
        Plain values and tensors on the CPU: `results` (by key of `self.log`, with the sums of each process) and
        `modules` (states of the module's torchmetrics, by name, of each process), and `known`, what callbacks find in
        `trainer.callback_metrics`.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    results = {
        key: {**{name: getattr(entry.meta, name) for name in PLAIN}, "reduction": entry.meta.reduce_fx.__name__,
              "sync": [entry.meta.sync.should, entry.meta.sync.rank_zero_only],
              "state": _state(entry) if entry.is_tensor else {}}
        for key, entry in loop._results.items()
        if entry.meta.on_epoch and not entry.has_reset and entry.meta.sync.group is None
    }  # fmt: skip
    modules = {
        name: _state(metric)
        for name, metric in trainer.lightning_module.named_modules()
        if isinstance(metric, Metric) and metric._update_count
    }
    connector: Any = trainer._logger_connector
    # Within an epoch, those of the last batch may not have been taken over.
    within = connector._first_loop_iter is not None
    values = connector.callback_metrics if within else connector._callback_metrics
    known = {name: value.detach().cpu().clone() for name, value in values.items() if torch.is_tensor(value)}
    return {"processes": gather(trainer, {"results": results, "modules": modules}), "known": known}


def restore_metrics(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Goes on with the sums of a checkpoint.

    With another number of processes the first one takes all sums, which is the same in the end for what is summed over
    processes; metrics whose states are something else than sums begin anew then.

    Args:
        trainer: in `fit`, with everything else restored.
        saved: what `metrics_so_far` has returned.
    """
    processes = saved["processes"]
    if len(processes) == trainer.world_size:
        own = processes[trainer.global_rank]
    elif trainer.is_global_zero:
        own = _together(trainer, processes)
    else:
        own = {"results": {}, "modules": {}}
    metrics = {n: m for n, m in trainer.lightning_module.named_modules() if isinstance(m, Metric)}
    for name, state in own["modules"].items():
        if name in metrics:
            _load(metrics[name], state)
    loop: Any = trainer.fit_loop.epoch_loop
    for key, entry in own["results"].items():
        attribute = entry["metric_attribute"]
        # What holds for one step has no sum, and may be logged in another way now, without a bar that shows it.
        if entry["on_epoch"] and (attribute is None or attribute in metrics):
            loop._results[key] = _result(trainer, entry, metrics.get(attribute))
    connector: Any = trainer._logger_connector
    if loop._results:
        # Before the first batch of an epoch, sums begin anew.
        connector._first_loop_iter = True
    device = trainer.strategy.root_device
    connector._callback_metrics.update({name: value.to(device) for name, value in saved["known"].items()})


def _result(trainer: Trainer, saved: dict[str, Any], metric: Metric | None) -> _ResultMetric:
    should, rank_zero_only = saved["sync"]
    meta = _Metadata(**{name: saved[name] for name in PLAIN}, reduce_fx=REDUCTIONS[saved["reduction"]])
    meta.sync = _Sync(_should=should, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only)
    result = _ResultMetric(meta, is_tensor=metric is None)
    if metric is not None:
        # Not one of its states: the metric itself, which has been restored.
        result.value = metric
    else:
        _load(result, saved["state"], trainer.strategy.root_device)
        return result
    # Never counted back by Lightning, which only asks whether there has been an update.
    result._update_count = 1
    return result


def _state(metric: Metric) -> dict[str, Any]:
    values = {name: getattr(metric, name) for name in metric._defaults}
    return {
        "updates": metric._update_count,
        "values": {
            name: [v.detach().cpu().clone() for v in value] if isinstance(value, list) else value.detach().cpu().clone()
            for name, value in values.items()
        },
    }


def _load(metric: Metric, state: dict[str, Any], device: torch.device | None = None) -> None:
    device = metric.device if device is None else device
    for name, value in state["values"].items():
        moved = [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
        setattr(metric, name, moved)
    metric._update_count, metric._computed = state["updates"], None


def gather(trainer: Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has, in all of them."""
    if trainer.world_size == 1:
        return [own]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def _together(trainer: Trainer, processes: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = {n: m for n, m in trainer.lightning_module.named_modules() if isinstance(m, Metric)}
    first = processes[0]
    results, modules = {}, {}
    for key, entry in first["results"].items():
        states = [process["results"].get(key, {}).get("state") for process in processes]
        if entry["metric_attribute"] is not None:
            results[key] = entry
        elif None not in states and entry["reduction"] in ("mean", "sum"):
            results[key] = {**entry, "state": _sum(states)}
    for name in first["modules"]:
        states = [process["modules"].get(name) for process in processes]
        sums = name in metrics and set(metrics[name]._reductions.values()) <= {torch.sum, _dim_zero_sum()}
        if None not in states and sums:
            modules[name] = _sum(states)
    return {"results": {k: v for k, v in results.items() if v["metric_attribute"] in (None, *modules)},
            "modules": modules}  # fmt: skip


def _sum(states: list[Any]) -> dict[str, Any]:
    names = states[0]["values"]
    values = {name: torch.stack([state["values"][name] for state in states]).sum(0) for name in names}
    return {"updates": max(state["updates"] for state in states), "values": values}


def _dim_zero_sum() -> Any:
    from torchmetrics.utilities import dim_zero_sum

    return dim_zero_sum
