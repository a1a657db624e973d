"""`python -m retail_assets`: the command, where its script is not on the path."""

from retail_assets.cli.app import run

if __name__ == "__main__":
    run()
