"""From features to the printed line."""
