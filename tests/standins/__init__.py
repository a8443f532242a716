"""Small models with random weights, saved in the layout of the real ones, for tests without downloads."""
