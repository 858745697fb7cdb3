"""Vision towers that are registered with the package, one file each."""
