"""How near a machine's own ceilings the engines come: `cascade-bench roofline`.

roof        the model: peak, bandwidth, and what arithmetic intensity allows
gemm        matrix products whose rate is the ceiling, and memory traffic whose rate is the other
openvino    GEMM graphs and layer profiles of OpenVINO
onnxruntime the same two of ONNX Runtime; a further library is one more such file
measure     everything in rounds: a `Roofline`
tables, plot  what people see of it
"""
