"""The int8 graph: calibration, quantisation, and layers that go back to fp32."""
