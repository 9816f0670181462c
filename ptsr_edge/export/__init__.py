"""From a checkpoint to a bundle of proven, static token-budget variants."""
