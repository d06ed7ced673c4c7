"""Work that hostile input may break, done by processes that nobody misses: asked, bounded, killed, started anew."""
