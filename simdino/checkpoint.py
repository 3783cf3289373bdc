"""Everything that the next step of a run depends on, in one file, and the way back from it."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from simdino.runs import SOURCE, read_json_lines, read_metadata, read_tensors, write_tensors, write_text


def save_checkpoint(path: Path, step: int, seconds: dict, branches: dict, optimizer, centers: dict) -> None:
    """Networks, optimizer, centers and step; all randomness follows from the step."""
    tensors = {f"{b}.{k}": v for b, network in branches.items() for k, v in network.state_dict().items()}
    for name, p in branches["student"].named_parameters():
        tensors |= {f"optimizer.{name}/{k}": v for k, v in optimizer.state[p].items()}
    metadata = {"step": str(step), **{k: str(v) for k, v in seconds.items()}, **_origin(branches)}
    write_tensors(path / "checkpoint.safetensors", tensors | centers, metadata)


def _origin(branches: dict) -> dict[str, str]:
    """What must be the same for a run to be continued exactly."""
    device = next(branches["student"].parameters()).device
    return {"source": SOURCE, "torch": torch.__version__, "device": device.type}


def clear(path: Path, branches: dict) -> None:
    """Remove a run that cannot be continued exactly: another source, torch or kind of device began it, or it never
    reached a checkpoint. Anything else in its place is left alone, and a ValueError.
    """
    checkpoint = path / "checkpoint.safetensors"
    metadata = read_metadata(checkpoint) if checkpoint.is_file() else {}
    if _origin(branches).items() <= metadata.items() or not path.exists():
        return
    if any(path.iterdir()) and not (path / "config.json").is_file():
        raise ValueError(f"{path} is in the way: it is not a run")
    shutil.rmtree(path)


def resume(path: Path, branches: dict, optimizer, centers: dict) -> tuple[int, float, float]:
    """Restore a checkpoint in place; (step to go on from, seconds spent, seconds of recording), 0 without one."""
    checkpoint = path / "checkpoint.safetensors"
    if not checkpoint.is_file():
        return 0, 0.0, 0.0
    tensors, metadata = read_tensors(checkpoint), read_metadata(checkpoint)
    device = next(branches["student"].parameters()).device

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

    for branch, network in branches.items():
        network.load_state_dict(under(f"{branch}."))
    for name, p in branches["student"].named_parameters():
        if state := under(f"optimizer.{name}/"):
            optimizer.state[p] = state
    for name, center in centers.items():
        center.copy_(tensors[name])
    return int(metadata["step"]), float(metadata["seconds"]), float(metadata["recording_seconds"])


def cut_log(path: Path, step: int) -> None:
    """Cut a run's log back to the steps before the one that it goes on from."""
    rows = [json.dumps(row) + "\n" for row in read_json_lines(path, whole=False) if row["step"] < step]
    write_text(path, "".join(rows))
