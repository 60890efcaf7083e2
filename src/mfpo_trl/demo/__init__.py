"""A tiny world on a CPU: scenes, a captioner that hallucinates, and DPO and MFPO side by side."""
