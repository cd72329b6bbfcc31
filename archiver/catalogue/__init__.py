"""SciCat: our client, the payloads we send, and the stand-in service used by dev, demo and tests."""
