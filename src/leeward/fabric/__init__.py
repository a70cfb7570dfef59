"""What a region can do on its hosts: the driver port, the QEMU host driver, networks, processes."""
