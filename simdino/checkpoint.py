"""Everything that the next step of a run depends on, in one file, and the way back from it."""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from simdino.runs import network_tensors, source
from simdino.vit import Network
from simdino.whole_files import read_json_lines, read_metadata, read_tensors, write_tensors, write_text


def save_checkpoint(
    path: Path,
    step: int,
    seconds: dict[str, float],
    branches: dict[str, Network],
    optimizer: torch.optim.Optimizer | None,
    centers: dict[str, Tensor],
) -> None:
    """Write what the next step depends on; all randomness follows from the step.

    Args:
        path: the run's directory.
        step: the step that is next.
        seconds: spent so far, as in `Progress`.
        branches: the networks, by name.
        optimizer: None after the last step. Nothing reads its state from then on, which is as large as two networks:
            what is left are the networks and centers that probes and notebooks load.
        centers: DINO's, by name.
    """
    tensors = network_tensors(branches)
    if optimizer is not None:
        for name, p in branches["student"].named_parameters():
            tensors |= {f"optimizer.{name}/{k}": v for k, v in optimizer.state[p].items()}
    metadata = {"step": str(step), **{k: str(v) for k, v in seconds.items()}, **_origin(branches)}
    write_tensors(path / "checkpoint.safetensors", tensors | centers, metadata)


def _origin(branches: dict) -> dict[str, str]:
    """What has to be the same for a run to be continued exactly."""
    device = next(branches["student"].parameters()).device
    return {"source": source(), "torch": torch.__version__, "device": device.type}


def clear(path: Path, branches: dict) -> None:
    """Remove a run that cannot be continued exactly.

    That is one that another source, torch or kind of device began, or that never reached a checkpoint.

    Raises:
        ValueError: something else is in its place, which is left alone.
    """
    checkpoint = path / "checkpoint.safetensors"
    metadata = read_metadata(checkpoint) if checkpoint.is_file() else {}
    if _origin(branches).items() <= metadata.items() or not path.exists():
        return
    if any(path.iterdir()) and not (path / "config.json").is_file():
        raise ValueError(f"{path} is in the way: it is not a run")
    shutil.rmtree(path)


class Progress(NamedTuple):
    """How far a run has come."""

    step: int = 0  # to go on from
    seconds: float = 0.0  # spent
    recording_seconds: float = 0.0  # of these, on snapshots


def resume(path: Path, branches: dict, optimizer, centers: dict) -> Progress:
    """Restore a run's checkpoint, if it has one, into networks, optimizer and centers; say how far it has come.

    A checkpoint of the last step restores no optimizer: nothing is left to train then.
    """
    checkpoint = path / "checkpoint.safetensors"
    if not checkpoint.is_file():
        return Progress()
    tensors, metadata = read_tensors(checkpoint), read_metadata(checkpoint)
    device = next(branches["student"].parameters()).device

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

    try:
        for branch, network in branches.items():
            network.load_state_dict(under(f"{branch}."))
        for name, p in branches["student"].named_parameters():
            if state := under(f"optimizer.{name}/"):  # laid out in memory as the parameter, as a fused step expects
                optimizer.state[p] = {k: torch.empty_like(p).copy_(v) if v.ndim else v for k, v in state.items()}
        for name, center in centers.items():
            center.copy_(tensors[name])
        progress = Progress(int(metadata["step"]), float(metadata["seconds"]), float(metadata["recording_seconds"]))
    except (
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:  # a tensor is missing or of another shape, or a word no number
        said = f"{' '.join(str(error).split())[:200]}; without the folder {path} the run is trained anew"
        raise ValueError(f"cannot resume from {checkpoint}: {said}") from None
    if not 0 <= progress.step < 2**53:
        raise ValueError(f"cannot resume from {checkpoint}: it is of step {progress.step}")
    return progress


def cut_log(path: Path, step: int) -> None:
    """Cut a run's log, whose steps ascend, back to those before the one that it goes on from."""
    steps = [row.get("step") for row in read_json_lines(path)]
    if wrong := [i for i, at in enumerate(steps, 1) if type(at) is not int]:
        raise ValueError(f"cannot read {path}: line {wrong[0]} has no step")
    kept = path.read_text(encoding="utf-8").splitlines()[: sum(at < step for at in steps)]
    write_text(path, "".join(f"{line}\n" for line in kept))
