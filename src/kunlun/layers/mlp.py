"""Two-layer perceptron, the plain building block."""

from __future__ import annotations

from torch import Tensor, nn

from kunlun.ops import gelu_approx


class MLP(nn.Module):
    """Linear, tanh-GELU, Linear: [..., dim_in] -> [..., dim_out].

    Starts with zero biases and keeps the size of unit inputs: ids enter the model
    two orders smaller than torch's default biases, which would drown them and make the first
    layer the same for every sample. FLOPs: 2 * hidden * (dim_in + dim_out) a row.
    """

    def __init__(self, dim_in: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim_in, hidden)
        self.down = nn.Linear(hidden, dim_out)
        nn.init.normal_(self.up.weight, std=dim_in**-0.5)
        nn.init.normal_(self.down.weight, std=1.5 * hidden**-0.5)  # GELU keeps 2/3 of rms
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim_in] -> [..., dim_out]."""
        y: Tensor = self.down(gelu_approx(self.up(x)))
        return y

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` rows."""
        return 2 * rows * (self.up.weight.numel() + self.down.weight.numel())
