"""Bringing data back: what travels through Temporal, what the requester is given."""
