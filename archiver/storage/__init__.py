"""Object stores, landing zones, and the long-term storage."""
