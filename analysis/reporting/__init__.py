"""From features to the printed page: `rows`, `judgement`, `features` (the report), `advice`, and `page` (all of it)."""
