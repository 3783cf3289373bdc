"""From features to the printed line: `rows`, `judgement`, `features` (the report), and `page` (with what is next)."""
