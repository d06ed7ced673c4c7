"""`make soak`: tests the server under mixed traffic and staged faults."""
