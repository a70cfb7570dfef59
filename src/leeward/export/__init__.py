"""Recovery points as readable disks: serving them, writing them out, making a VM's disks local."""
