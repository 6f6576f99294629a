"""What the second paper prints (arXiv 2603.22061v1, Qwen 3.5 2B, tables 1 to 4), to stand beside what was measured here."""

MODEL = "Qwen 3.5 2B (24 layers)"
UNMATCHED = (
    (9, 0.5, 0.0048, 2305),
    (14, 0.5, 0.0047, 2358),
    (15, 0.5, 0.0050, 2193),
    (11, 0.8, 0.0456, 222),
    (12, 0.8, 0.0398, 254),
    (13, 0.8, 0.0191, 536),
)
"""Table 1, unmatched baseline: layer with R = 0, least weight there, KL, efficiency as printed (10 / KL is about a tenth smaller)."""
WEIGHTS = (0.3, 0.5, 0.8, 1.0, 1.2)
MATCHED = {9: (10, 10, 9, 9, 9), 14: (10, 10, 10, 10, 10), 15: (10, 10, 10, 10, 10), 11: (10, 10, 10, 10, 10)}
"""Table 2, matched baseline without SVD: R out of 10 by layer and weight."""
MATCHED_SVD = {layer: (10, 10, 10, 10, 10) for layer in (9, 14, 15, 23)}
"""Table 3, matched baseline with SVD: R out of 10 by layer and weight."""
CAPTURE = (("SOM, unmatched", 0.689, 0.858, "0.72 to 0.77"), ("SVD, matched", 0.602, 0.804, "0.65 to 0.74"))
"""Table 4, cosine capture of 18 held-out pairs: mean, peak (layer 9), layers 11 to 23. The formula is not printed."""
