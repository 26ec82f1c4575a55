"""`producer` and `python -m producer`."""

from producer.cli.app import main

if __name__ == "__main__":
    main()
