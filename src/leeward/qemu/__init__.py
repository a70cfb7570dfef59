"""QEMU as we use it: QMP sessions, mirrors to the tap, dirty bitmaps, machines."""
