"""Instructions of an inference on an emulated Cortex-M: bakenn's C with Arm's CMSIS-NN under qemu-system-arm."""
