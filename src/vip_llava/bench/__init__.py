"""What `vip-llava bench` measures: workloads, the roofline of the device, quantization error."""
