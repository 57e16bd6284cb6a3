"""What every other part uses: argument checks, the device, modes of modules, writing files."""
