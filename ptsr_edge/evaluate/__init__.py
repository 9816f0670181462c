"""Who is judged on what: protocols, folds, scores."""
