"""What every room uses: array namespaces, devices, numbers and labels."""
