"""The subcommands of `mdinfer`. Each module adds its parsers with `add_to`; `run` returns the exit status."""
