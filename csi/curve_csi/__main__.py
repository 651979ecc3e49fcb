from curve_csi.main import main

main()
