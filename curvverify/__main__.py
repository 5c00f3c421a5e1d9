"""`python -m curvverify` is the command `curvverify`."""

from curvverify.cli.main import main

if __name__ == "__main__":
    main()
