from e2e.mainjob.cli import main

main()
