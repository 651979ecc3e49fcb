from e2e.box.cli import main

main()
