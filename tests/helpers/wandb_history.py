"""Reader of the files of an offline W&B run."""

import json
import struct
from pathlib import Path

BLOCK, HEADER = 32 * 1024, 7


def _records(path: Path) -> list:
    """The records of a ``.wandb`` file: pieces with a header of checksum, length and kind, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, pieces = path.read_bytes(), HEADER, [], b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too short for a header: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        pieces += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last of several
            found.append(Record.FromString(pieces))
            pieces = b""
    return found


def _values(items) -> dict:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_wandb_run(directory: Path) -> tuple[list[dict], dict, dict]:
    """The rows of the history, the configuration, and the step metric and summary of each metric of the only run."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    rows, config, summaries = [], {}, {}
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append(_values(record.history.item))
        elif kind == "config":
            config |= _values(record.config.update)
        elif kind == "run":
            config |= _values(record.run.config.update)
        elif kind == "metric":
            summary = record.metric.summary
            best = "min" if summary.min else "max" if summary.max else ""
            summaries[record.metric.name or record.metric.glob_name] = (record.metric.step_metric, best)
    return rows, config, summaries


def read_wandb_artifacts(directory: Path) -> list[tuple[str, bool]]:
    """The file of each uploaded checkpoint, in order, and whether it is called "best"; tables are artifacts too."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    artifacts = [record.artifact for record in _records(path) if record.WhichOneof("record_type") == "artifact"]
    artifacts = [artifact for artifact in artifacts if artifact.type == "model"]
    return [(json.loads(artifact.metadata)["original_filename"], "best" in artifact.aliases) for artifact in artifacts]
