from e2e.chaos.cli import main

main()
