"""The command line program ``tfiseg``: one module per group of commands."""
