"""The operators: what the model computes on packed sequences, one folder each.

Open an operator's `__init__` for its meaning, `reference` for the slow float64 truth the tests
use, `portable` for what runs. Importing this room registers the operators with torch (namespace
"kunlun") and compiles nothing.
"""

from kunlun.ops.dispatch import Choice, choose
from kunlun.ops.gdpa import gdpa
from kunlun.ops.gelu import gelu_approx
from kunlun.ops.hstu_attention import hstu_attention
from kunlun.ops.jagged import Jagged
from kunlun.ops.mix_rows import mix_rows
from kunlun.ops.norms import add_rms_norm, layer_norm, rms_norm
from kunlun.ops.rotary import rotary, rotary_split
from kunlun.ops.row_wise_adagrad import row_wise_adagrad_
from kunlun.ops.seed_attention import seed_attention
from kunlun.ops.sum_kron import sum_kron
from kunlun.ops.window_attention import window_attention

__all__ = [
    "Choice",
    "Jagged",
    "add_rms_norm",
    "choose",
    "gdpa",
    "gelu_approx",
    "hstu_attention",
    "layer_norm",
    "mix_rows",
    "rms_norm",
    "rotary",
    "rotary_split",
    "row_wise_adagrad_",
    "seed_attention",
    "sum_kron",
    "window_attention",
]
