"""`make soak`: the server under mixed traffic and staged faults, and whether it came through them."""
