"""What tokens of a vision language model cost."""

from __future__ import annotations

from dataengine.settings import Settings


def usd(settings: Settings, input_tokens: int, output_tokens: int, model: str | None = None) -> float | None:
    """The price of a call's tokens: by `--price`, else by genai-prices' list; None where it is not known.

    Args:
        output_tokens: thinking included.
        model: the model as the service named it in an answer; else that of `--vlm`.
    """
    if settings.price is not None:
        return settings.priced(input_tokens, output_tokens)
    from genai_prices import Usage, calc_price  # brought by pydantic-ai

    provider, _, asked = settings.vlm.partition(":")
    try:
        tokens = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        return float(calc_price(tokens, model_ref=model or asked, provider_id=provider).total_price)
    except LookupError:
        return None


def money(usd: float | None) -> str:
    """USD in words; what is not known is said so."""
    if usd is None:
        return "cost unknown"
    return f"${usd:,.2f}" if usd >= 1 or not usd else f"${usd:.4f}"
