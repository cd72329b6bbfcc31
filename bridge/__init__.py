"""SciCat's jobs in, Temporal workflow starts out: over HTTP (``app``) and RabbitMQ (``rabbitmq``), each by way of ``intake``."""
