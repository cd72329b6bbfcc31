"""What the generated SciCat SDK says of payloads; a program of its own, because two versions of one package are asked.

Reads a JSON array of ``[name of the DTO, payload]``, writes ``{"version": ..., "complaints": [[...], ...]}``. The models
drop unknown keys and take floats for sizes, where SciCat says 400, so both are looked at here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import scicat_sdk_py as sdk
from pydantic import ValidationError

INSIDE = {"dataFileList": "DataFile", "datasetList": "DatasetListDto"}
SIZES = ("size", "packedSize", "numberOfFiles", "numberOfFilesArchived")


def complaints(name: str, payload: Any) -> Iterator[str]:
    """What is wrong with the payload, in words."""
    model = getattr(sdk, name)
    try:
        model.from_dict(payload)
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        yield f"{name}: {error}"
    if not isinstance(payload, dict):
        return
    known = {field.alias or key for key, field in model.model_fields.items()}
    yield from (f"{name} has no {key}" for key in payload.keys() - known)
    for key in payload.keys() & set(SIZES):
        if not isinstance(payload[key], int) or isinstance(payload[key], bool):
            yield f"{name}.{key} is not an integer"
    params = payload.get("jobParams")
    for key, inner in INSIDE.items():
        for holder in (payload, params if isinstance(params, dict) else {}):
            for entry in holder.get(key, []):
                yield from complaints(inner, entry)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    said = [list(complaints(name, payload)) for name, payload in asked]
    json.dump({"version": version("scicat-sdk-py"), "complaints": said}, sys.stdout)
