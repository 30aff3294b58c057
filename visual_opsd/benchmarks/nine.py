"""The nine benchmarks of the paper's Table 2, in its order, and what it reports for others."""

from visual_opsd.benchmarks.benchmark import Benchmark
from visual_opsd.benchmarks.blink import BLINK, BLINK_JIGSAW
from visual_opsd.benchmarks.chartqa import CHARTQA
from visual_opsd.benchmarks.cvbench import CV_BENCH
from visual_opsd.benchmarks.mmvp import MMVP
from visual_opsd.benchmarks.sat import SAT
from visual_opsd.benchmarks.vispuzzle import VISPUZZLE
from visual_opsd.benchmarks.vsp_navigation import VSP
from visual_opsd.benchmarks.vstar import VSTAR

NINE: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (VSP, VISPUZZLE, CHARTQA, VSTAR, BLINK_JIGSAW, MMVP, SAT, BLINK, CV_BENCH)
}

PAPER: dict[str, tuple[float, ...]] = {
    "InternVL3.5-8B": (8.17, 34.75, 76.26, 68.59, 71.33, 76.33, 45.33, 59.60, 81.99),
    "InternVL3.5-38B": (20.16, 36.50, 80.44, 76.96, 80.67, 80.33, 49.33, 62.65, 85.96),
    "Qwen3-VL-8B": (22.00, 37.00, 82.55, 84.29, 68.66, 77.66, 54.00, 69.43, 85.63),
    "Qwen3-VL-32B": (43.50, 50.75, 83.52, 84.80, 70.66, 80.00, 76.00, 66.22, 87.51),
    "GPT-4o": (33.50, 43.75, 76.34, 61.78, 72.67, 84.67, 28.00, 60.28, 75.61),
    "GPT-5": (57.33, 78.00, 80.85, 71.73, 77.33, 86.33, 73.30, 69.86, 85.46),
    "Janus-Pro-7B": (0.00, 33.50, 43.08, 38.22, 50.67, 63.33, 22.00, 38.51, 67.83),
    "Chameleon-7B": (0.83, 30.50, 5.74, 28.27, 0.67, 47.67, 10.67, 16.52, 36.52),
    "BAGEL-7B": (0.83, 35.00, 61.82, 55.49, 67.33, 70.33, 44.67, 47.66, 76.03),
    "ThinkMorph-7B, drawn": (75.83, 77.50, 78.00, 67.01, 66.00, 78.33, 52.67, 59.49, 80.86),
    "ThinkMorph-7B, text-only": (73.27, 76.25, 76.80, 64.92, 68.00, 79.00, 51.33, 59.50, 80.07),
    "text-only SFT": (49.17, 63.50, 81.66, 56.02, 68.67, 76.33, 46.63, 54.39, 77.37),
    "Visual-OPSD, noise": (50.83, 64.50, 73.77, 61.70, 68.66, 75.33, 48.00, 55.49, 79.09),
    "Visual-OPSD": (85.83, 86.00, 78.79, 64.92, 77.33, 77.33, 54.00, 61.44, 80.64),
}
"""Percent, in the order of ``NINE``: Table 2, and the pilot of Figure 3a for ThinkMorph's text."""
