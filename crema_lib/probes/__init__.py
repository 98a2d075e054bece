"""What stands on frozen features: linear, nearest-neighbour and attention-pooling probes, and ridge regression for ages."""
