"""SciCat's jobs in, Temporal workflow starts out: over HTTP (``app``), each by way of ``intake``."""
