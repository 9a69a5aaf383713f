"""Multi-head attention in parts: what torch does in one function, its linear layers visible.

z = W_o · attention(W_q x, W_k x, W_v x) + b_o
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

_NAMES = (
    "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias",
    "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias",
)  # fmt: skip
_UNUSUAL = (
    "bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "use_separate_proj_weight",
    "static_k", "static_v",
)  # fmt: skip


def can_attend(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Tell whether :func:`attend` does what ``F.multi_head_attention_forward`` would.

    Args:
        args: its arguments.
        named: its keyword arguments.
    """
    given = {**dict(zip(_NAMES, args, strict=False)), **named}
    mask = given.get("attn_mask")
    return (
        len(args) <= len(_NAMES)
        and not given.get("need_weights", True)
        and not any(given.get(name) is not None and given[name] is not False for name in _UNUSUAL)
        and given["query"] is given["key"]
        and given["key"] is given["value"]
        and given["query"].ndim == 3
        and (mask is None or mask.ndim == 2)
    )


def attend(*args: Any, **named: Any) -> tuple[Tensor, None]:
    """Attend to itself, with the arguments of ``F.multi_head_attention_forward``.

    Returns:
        ``[t, b, d]``, and no attention weights.
    """
    given = {**dict(zip(_NAMES, args, strict=False)), **named}
    x, heads = given["query"], given["num_heads"]  # [t, b, d]
    t, b, d = x.shape
    mask = given.get("attn_mask")
    if mask is not None and mask.dtype != bool and not mask.is_floating_point():
        mask = mask.bool()
    projected = F.linear(x, given["in_proj_weight"], given["in_proj_bias"])  # [t, b, 3d]
    q, k, v = (
        part.reshape(t, b, heads, d // heads).permute(1, 2, 0, 3) for part in projected.chunk(3, -1)
    )  # [b, heads, t, d/heads]
    mixed = F.scaled_dot_product_attention(
        q,
        k,
        v,
        mask if mask is None or mask.is_floating_point() else ~mask,
        given["dropout_p"] if given.get("training", True) else 0.0,
        given.get("is_causal", False) and mask is None,
    )
    out: Tensor = mixed.permute(2, 0, 1, 3).reshape(t, b, d)
    return F.linear(out, given["out_proj_weight"], given["out_proj_bias"]), None
