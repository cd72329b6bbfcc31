"""The archive domain: catalogue, datablocks and storage. Knows nothing of Temporal."""
