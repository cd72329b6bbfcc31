"""SciCat jobs in (HTTP, RabbitMQ), Temporal workflow starts out."""
