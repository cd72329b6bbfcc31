"""Plan, pack, manifest, verify, bag: streaming, with no network and no Temporal in their signatures."""
