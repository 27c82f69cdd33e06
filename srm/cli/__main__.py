"""Run the `srm` command as `python -m srm.cli`."""

from srm.cli.main import main

main()
