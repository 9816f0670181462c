"""From profiles to a page, and to the variant to take."""
