"""What each variant costs and is worth, measured."""
