"""What the messages of many ranks take on a network, from what a message costs beside its bytes. Pure; prints tables.

A broadcast goes down a binary tree over the hosts and then over the ranks of each, which copy in memory; a gather comes
over rank 0's link. MPI's own tree does not know hosts: then each host's link carries as many copies of the weights as
it has ranks, the reason for `mpirl/transport/levels.py`.
"""

from __future__ import annotations

import math

RANKS, PER_HOST = 1000, 50
LANES, STEPS = 4, 128  # of a worker, per iteration
BYTES_PER_STEP, WEIGHTS = 7322, 1_690_000
COLLECT = 0.43  # seconds in which one core takes a worker's steps in Atari, at 1,200 per second
COPY = 4e9  # bytes per second between ranks of a host
LINKS = (10, 25, 100)  # Gbit/s


def predict(per_broadcast: float, per_gather: float) -> list[dict[str, float | str]]:
    """The tables as rows. per_...: seconds that a message costs beside its bytes."""
    rows: list[dict[str, float | str]] = []
    batch = (RANKS - 1) * LANES * STEPS * BYTES_PER_STEP
    print(
        f"\n{RANKS:,} ranks, {PER_HOST} per host, {LANES} lanes x {STEPS} steps of Atari each: rank 0 receives "
        f"{batch / 1e9:.2f} GB per iteration, in which workers collect for {COLLECT} s. lag 0, lag 1: the share of its time in "
        "which a worker collects, where learning takes as long as collecting. At most: steps/s if both took no time"
    )
    titles = "Gbit/s,wire,broadcast by MPI's tree,by host,gather,its messages,lag 0,lag 1,at most,breaks first".split(",")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for link in LINKS:
        for gather in ("direct", "host"):
            for weights, width in (("fp32", 4), ("bf16", 2)):
                row = case(link * 1e9 / 8, gather, width * WEIGHTS, batch, per_broadcast, per_gather)
                rows.append({"gbits": link, "gather": gather, "weights": weights, **row})
                times = [f"{1e3 * row[key]:.0f} ms" for key in ("tree", "broadcast", "gather_seconds", "messages")]
                shares = [f"{row[key]:.0%}" for key in ("sync", "lag")]
                ends = [f"{row['most']:,.0f} steps/s", str(row["breaks"])]
                print(f"| {link} | {gather}, {weights} | {' | '.join([*times, *shares, *ends])} |")
    return rows


def case(link: float, gather: str, size: int, batch: int, per_broadcast: float, per_gather: float) -> dict[str, float | str]:
    """Seconds of an iteration's messages. link: bytes per second of every host's. size: bytes of the weights."""
    hosts = RANKS // PER_HOST
    levels = lambda number: math.ceil(math.log2(number))
    within = levels(PER_HOST) * (per_broadcast + size / COPY)
    broadcast = levels(hosts) * (per_broadcast + size / link) + within
    tree = levels(hosts) * (per_broadcast + PER_HOST * size / link) + within
    # On rank 0's own host nothing crosses the link; there are hosts - 1 senders with gather=host, and all workers else.
    received = batch * (1 - PER_HOST / RANKS) / link
    messages = (hosts - 1 if gather == "host" else RANKS - 1) * per_gather
    moved = {"rank 0's link in": received, "weights out": broadcast, "messages to rank 0": messages}
    total = broadcast + received + messages
    steps = (RANKS - 1) * LANES * STEPS
    return {
        "tree": tree,
        "broadcast": broadcast,
        "gather_seconds": received,
        "messages": messages,
        "sync": COLLECT / (2 * COLLECT + total),
        "lag": COLLECT / (COLLECT + total),
        "most": steps / total,
        "breaks": max(moved, key=lambda name: moved[name]),
    }


if __name__ == "__main__":
    predict(5e-5, 5e-5)
