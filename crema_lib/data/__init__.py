"""From an archive, or the simulator, to a store of recordings with labels and a split."""
