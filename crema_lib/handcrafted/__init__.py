"""The classical baseline: measurements of the waves, and gradient boosting on top of them."""
