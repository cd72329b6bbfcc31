"""What SciCat's backend does with a job configuration: form, validation, templates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import yaml
from pybars import Compiler

from cli.programs import ROOT

FOLDER = ROOT / "deploy" / "scicat"
TEXT = {"type": "string", "minLength": 1}


def _action(kind: str, needed: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "if": {"properties": {"actionType": {"const": kind}}},
        "then": {
            "required": ["actionType", *needed],
            "properties": {"actionType": True, **needed, **optional},
            "additionalProperties": False,
        },
    }


ACTIONS = {"type": "array", "items": {"$ref": "#/$defs/action"}}
CASE = {"required": ["actions"], "properties": {"actions": ACTIONS}}
FLAG = {"type": "boolean"}
SIDE = {
    "type": "object",
    "required": ["auth"],
    "additionalProperties": False,
    "properties": {"auth": TEXT, "actions": ACTIONS},
}
SCHEMA = {
    "type": "object",
    "required": ["configVersion", "jobs"],
    "additionalProperties": False,
    "properties": {
        "configVersion": TEXT,
        "jobs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["jobType", "create", "update"],  # without both the backend does not start
                "additionalProperties": False,
                "properties": {"jobType": TEXT, "create": SIDE, "update": SIDE},
            },
        },
    },
    "$defs": {
        "action": {
            "type": "object",
            "properties": {"actionType": {"enum": ["url", "rabbitmq", "email", "validate", "switch"]}},
            "allOf": [
                _action(
                    "url",
                    {"url": TEXT},
                    method={"enum": ["GET", "POST", "PUT", "DELETE"]},
                    headers={"type": "object", "additionalProperties": TEXT},
                    body=TEXT,  # a map would not be serialised
                    ignoreErrors=FLAG,
                ),
                _action("rabbitmq", {"exchange": TEXT, "queue": TEXT, "key": TEXT}),
                _action(
                    "email",
                    {"to": TEXT, "subject": TEXT, "bodyTemplateFile": TEXT},
                    **{"from": TEXT, "ignoreErrors": FLAG},
                ),
                _action("validate", {}, request={"type": "object"}, datasets={"type": "object"}),
                _action(
                    "switch",
                    {
                        "phase": {"enum": ["validate", "perform", "all"]},
                        "property": TEXT,
                        "cases": {"type": "array", "items": CASE},
                    },
                ),
            ],
        }
    },
}
"""Keys of each action, no others."""

HELPERS = {
    "jsonify": lambda this, value: json.dumps(value, indent=3, ensure_ascii=False),
    "urlencode": lambda this, value: quote(str(value), safe=""),
    "eq": lambda this, one, other: one == other,
}


def configuration(name: str) -> dict[str, Any]:
    """A file of ours, in SciCat's form."""
    found = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return dict(found)


def job_type(name: str, kind: str) -> dict[str, Any]:
    """The configuration of one job type."""
    return next(job for job in configuration(name)["jobs"] if job["jobType"] == kind)


def render(template: str, context: dict[str, Any]) -> str:
    """As SciCat's Handlebars (4.7) does; that one calls four closing braces in a row a parse error, pybars does not."""
    if "}}}}" in template:
        raise ValueError("Parse error: }}}}")
    return str(Compiler().compile(template)(context, helpers=HELPERS))


def refused(actions: list[dict[str, Any]], request: dict[str, Any], datasets: list[dict[str, Any]]) -> str:
    """What the validate actions say to a new job; empty if nothing. A path that leads nowhere fails too."""
    for action in actions:
        if action["actionType"] == "validate":
            checks = [(request, *check) for check in action.get("request", {}).items()]
            checks += [(dataset, *check) for dataset in datasets for check in action.get("datasets", {}).items()]
            for document, path, schema in checks:
                value: Any = document
                for part in path.split("."):
                    if not isinstance(value, dict) or part not in value:
                        return f"Requires '{path}'"
                    value = value[part]
                if not jsonschema.Draft7Validator(schema).is_valid(value):
                    return f"Invalid value for '{path}'"
    return ""


def performed(actions: list[dict[str, Any]], context: dict[str, Any]) -> list[dict[str, Any]]:
    """The actions of the perform phase that run for this context, their templates filled in."""
    done: list[dict[str, Any]] = []
    for action in actions:
        kind = action["actionType"]
        if kind == "switch" and action["phase"] in ("perform", "all"):
            value: Any = context
            for part in action["property"].split("."):
                value = value[part]
            for case in action["cases"]:
                pattern = re.fullmatch(r"/(.*)/", case["regex"])
                assert pattern, "a regex stands between slashes"
                if re.search(pattern[1], value):
                    done += performed(case["actions"], context)
                    break
        elif kind == "url":
            filled = {key: render(action[key], context) for key in ("url", "body")}
            headers = {key: render(value, context) for key, value in action["headers"].items()}
            done.append({**action, **filled, "headers": headers})
        elif kind == "email":
            body = render(Path(FOLDER, action["bodyTemplateFile"]).read_text("utf-8"), context)
            done.append({**action, **{key: render(action[key], context) for key in ("to", "subject")}, "body": body})
        elif kind == "rabbitmq":
            done.append(action)
    return done
