"""What every other part uses: argument checks, the device, writing files."""
