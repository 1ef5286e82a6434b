"""Why an operator has no rule: never, on bounded inputs only, replace (an equivalent works), or not yet."""

from __future__ import annotations

from lightning_lipschitz.errors import Verdict

PRODUCT = (
    "The product of two values that both depend on the input grows without bound; where both are bounded, it is read"
    " entry by entry (`*`) only."
)
BOUNDED_FACTOR = (
    "It multiplies two values that both depend on the input, and one of them may grow without bound. Keep it between"
    " two numbers (torch.sigmoid, torch.tanh, torch.clamp), or certify what comes before and after it on its own."
)
_KNOWN = "With a known tensor as the other factor it is linear: write it with `@`, `*` or `torch.einsum`."
_STEEP = "Its slope is unbounded."
_JUMP = "It jumps, and a jump is steeper than any constant."
_ATTENTION = (
    "Dot-product attention is not Lipschitz on an unbounded domain (Kim, Papamakarios and Mnih 2021)."
    " Certify what comes before and after it on its own."
)

_TAMED = "What surrounds it may tame it, which is read only in known activations: write them with torch.nn.functional."

_NOT_ALONE = {
    _STEEP: (
        "exp exp2 expm1 special_expm1 log log2 log10 log1p sqrt rsqrt reciprocal square pow tan sinh cosh acos asin "
        "acosh asinh atanh digamma lgamma erfinv logit special_logit prod cumprod float_power atan2"
    ),
    _JUMP: (
        "sign sgn round floor ceil trunc fix frac heaviside gt ge lt le eq ne argmax argmin argsort floor_divide "
        "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine quantize_per_tensor "
        "remainder fmod bucketize isnan isfinite logical_not logical_and logical_or bitwise_not any all nonzero signbit"
    ),
}
_BOUNDED = {
    PRODUCT: "bmm baddbmm addbmm dot vdot inner outer bilinear _trilinear addr kron",
    _ATTENTION: (
        "scaled_dot_product_attention _native_multi_head_attention _scaled_dot_product_flash_attention_for_cpu"
    ),
}
_REPLACE = {
    "Use nn.Dropout, which follows the training flag, or pass training=self.training.": "native_dropout",
    "Keep running statistics (track_running_stats=True), or samples act on each other.": "_native_batch_norm_legit",
}
_DEFAULT = "Certify what comes before and after it on its own (the constants of a composition multiply), or replace it."
_TABLE: list[tuple[Verdict, dict[str, str]]] = [
    (
        "not yet",
        {f"By itself it has no finite Lipschitz constant: {why} {_TAMED}": of for why, of in _NOT_ALONE.items()},
    ),
    ("bounded inputs", _BOUNDED),
    ("replace", _REPLACE),
]
_REASONS = {
    name: (verdict, why) for verdict, reasons in _TABLE for why, names in reasons.items() for name in names.split()
}


def refusal(operator: str, depending: int = 2) -> tuple[Verdict, str] | None:
    """Verdict and sentence for an operator without a rule, if this page knows it.

    Args:
        operator: its name.
        depending: how many of its arguments depend on the input; a product with what is known is no product.
    """
    known = _REASONS.get(operator)
    return ("not yet", _KNOWN) if known and PRODUCT in known[1] and depending < 2 else known


def unknown() -> tuple[Verdict, str]:
    """Verdict and sentence for all others."""
    return "not yet", _DEFAULT
