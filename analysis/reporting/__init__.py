"""From features to the printed line: `rows` measures, `judgement` judges, `features` reports, `page` adds what is next."""
