"""Log lines: text for people, JSON for machines; both scrubbed of secrets (P8)."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal

from archiver.text import lines, printable

SIGNATURE = re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"'\\]+")
"""What makes a URL a credential."""
_SECRETS = (
    (re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1***"),
    (SIGNATURE, r"\1***"),
    (
        re.compile(r"(?i)((?:access_token|password|secret_key|secret|token)[\"']?\s*[=:]\s*[\"']?)[^&\s\"',}]+"),
        r"\1***",
    ),
    (re.compile(r"(\w+://)[^/@\s:]+:[^/@\s]+@"), r"\1***@"),
)


def scrub(text: str) -> str:
    """``text`` without tokens, passwords and signatures."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class Expected(logging.Filter):
    """Failures that were raised on purpose are one line without a traceback; those that are a user's or a stop are no warnings.

    The SDK logs each attempt that failed with its traceback, which tells nothing that the message does not.
    """

    KINDS = frozenset({"ApplicationError", "ActivityError", "ChildWorkflowError", "CancelledError"})
    """Temporal's failures by their names: this module knows nothing of Temporal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets it pass."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or type(error).__name__ not in self.KINDS:
            return True
        record.exc_info = record.exc_text = None
        context = getattr(record, "temporal_activity", None) or getattr(record, "temporal_workflow", None)
        context = context if isinstance(context, dict) else {}
        step = context.get("activity_type") or context.get("workflow_type") or "step"
        tried = f", try {context['attempt']}" if "attempt" in context else ""
        record.msg, record.args = "%s of %s%s: %s", (step, context.get("workflow_id", "?"), tried, error)
        details = getattr(error, "details", None)
        kind = details[0].get("kind") if details and isinstance(details[0], dict) else ""
        if kind in ("content", "refused") or type(error).__name__ == "CancelledError":
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        # One line a record, whatever names it tells.
        record.message = printable(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return scrub(lines(super().format(record)))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrub(record.getMessage()),
        }
        for name in ("temporal_workflow", "temporal_activity"):
            if isinstance(context := getattr(record, name, None), dict):
                line.update({key: value for key, value in context.items() if isinstance(value, (str, int))})
        if record.exc_info:
            line["exception"] = scrub(self.formatException(record.exc_info))
        return json.dumps(line)


def configure_logging(log_format: Literal["text", "json"]) -> None:
    """Send log lines to standard error. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if log_format == "json" else _Text("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    handler.addFilter(Expected())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "botocore", "boto3", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
