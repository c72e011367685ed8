"""`python -m kunlun` is `kunlun`."""

from kunlun.cli import main

main()
