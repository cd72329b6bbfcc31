"""Exit 0 if this container's worker polls Temporal: its metrics say that at least one poller is open.

A draining worker has none and counts as unhealthy, which is right: it takes no work. With the argument ``bridge``: exit 0 if
the bridge answers. Standard library only.
"""

import os
import sys
from urllib.request import urlopen


def pollers(metrics: str) -> float:
    """The sum over all task queues of Temporal's own gauge."""
    lines = [line for line in metrics.splitlines() if line.startswith("temporal_num_pollers")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def bridge_answers() -> int:
    """0: yes."""
    port = os.environ["ARCHIVER_BRIDGE__PORT"]
    try:
        with urlopen(f"http://127.0.0.1:{port}/health/live", timeout=4) as answer:
            print(answer.read().decode())
    except OSError as error:
        print(f"the bridge does not answer on port {port}: {error}")
        return 1
    return 0


def main() -> int:
    """0: polls; 1: answers, but does not poll, or does not answer."""
    if sys.argv[1:] == ["bridge"]:
        return bridge_answers()
    port = os.environ["ARCHIVER_WORKER__METRICS_ADDRESS"].rpartition(":")[2]
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=4) as answer:
            count = pollers(answer.read().decode())
    except OSError as error:
        print(f"metrics do not answer on port {port}: {error}")
        return 1
    print(f"{count:.0f} pollers")
    return 0 if count > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
