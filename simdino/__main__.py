"""`python -m simdino COMMAND ...`, the same as `simdino COMMAND ...`."""

from simdino.analysis.commands import main

if __name__ == "__main__":
    main()
