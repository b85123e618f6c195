"""Which of several answers a model likes best, with a fair chance for long ones."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vlm.errors import UserError
from lightning_vlm.metrics.decoding import decode


class Candidate(NamedTuple):
    """One of several answers to a prompt.

    Args:
        text: What the model wrote.
        log_prob: Natural logarithm of its probability: the sum over its tokens, as the model gives them to
            the prompt, without the temperature, `top_k` or suppressed tokens it was chosen with.
        length: Its tokens, the end-of-turn token included.
        score: `length_score` of the two, which ranks it.
    """

    text: str
    log_prob: float
    length: int
    score: float


def length_score(
    log_prob: float, length: int, alpha: float = 1.0, form: Literal["power", "gnmt"] = "power"
) -> float:
    """How good an answer is, so that answers of different lengths can be compared; the higher the better.

    Each token makes an answer less probable, so the most probable one tends to be short. An alpha of
    0.6 to 0.8 is usual. Perplexity is `exp(-length_score(..., alpha=1))`: it doesn't favour short answers,
    the probability does.

    Args:
        log_prob: Sum of the logarithms of the probabilities of an answer's tokens.
        length: Its tokens, at least 1.
        alpha: 0 takes the probability as it is, 1 its mean over tokens.
        form: `power` divides by length^alpha, as transformers' `length_penalty` does; `gnmt` by
            ((5 + length) / 6)^alpha, as in equation 14 of Google's translation system (Wu et al. 2016,
            https://arxiv.org/abs/1609.08144), which treats short answers more alike.

    Raises:
        UserError: No token, an alpha that is no finite number, or no such form.

    >>> length_score(-6.0, 3), length_score(-6.0, 4, alpha=0.5), length_score(-6.0, 7, form="gnmt")
    (-2.0, -3.0, -3.0)
    """
    if length < 1:
        raise UserError(f"length: found {length}; expected at least 1 token")
    if not math.isfinite(alpha):
        raise UserError(f"alpha: found {alpha}; expected a finite number, usually from 0 to 1")
    if form == "power":
        penalty = length**alpha
    elif form == "gnmt":
        penalty = ((5 + length) / 6) ** alpha
    else:
        raise UserError(f"form: found {form!r}; expected power or gnmt")
    return float(log_prob / penalty)


def generate_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: dict[str, Tensor],
    options: dict[str, Any],
    kept: Sequence[Collection[str]] = (),
) -> list[list[Candidate]]:
    """Several answers to each prompt, the best first.

    All logits of the new tokens are held: new tokens × rows × answers (or beams) × vocabulary, in float32.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        inputs: Prompts, padded on the left: what the model's forward takes.
        options: Arguments of `generate`, with `num_return_sequences`. `length_penalty` is the alpha of
            `length_score` (1 by default), with beams and without.
        kept: Of each prompt, the special tokens that stay in its answers.

    Returns:
        For each prompt `num_return_sequences` candidates. Some may have the same text.
    """
    count = options["num_return_sequences"]
    beams = options.get("num_beams", 1)
    alpha = options.get("length_penalty", 1.0)
    if beams == 1:  # where it is no option of generate
        options = {key: value for key, value in options.items() if key != "length_penalty"}
    found = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)  # type: ignore[operator]
    prompt_length = inputs["input_ids"].shape[1]
    new = found.sequences[:, prompt_length:]
    log_probs = token_log_probs(found.logits, new, getattr(found, "beam_indices", None))
    ends = options.get("eos_token_id", model.generation_config.eos_token_id)
    if isinstance(ends, int):
        ends = [ends]
    lengths = answer_lengths(new, ends or [], tokenizer.pad_token_id)
    place = torch.arange(new.shape[1], device=new.device)
    is_behind = place >= lengths[:, None]
    sums = log_probs.double().masked_fill(is_behind, 0).sum(1)
    texts = decode(tokenizer, new, [tokens for tokens in kept for _ in range(count)])
    candidates = []
    for text, log_prob, length in zip(texts, sums.tolist(), lengths.tolist(), strict=True):
        score = length_score(log_prob, length, alpha)
        candidates.append(Candidate(text.strip(), log_prob, length, score))
    ranked = []
    for first in range(0, len(candidates), count):
        of_prompt = candidates[first : first + count]
        # Equal scores keep the order of generate, which `reverse=True` doesn't change.
        ranked.append(sorted(of_prompt, key=lambda candidate: candidate.score, reverse=True))
    return ranked


def token_log_probs(logits: Sequence[Tensor], tokens: Tensor, beams: Tensor | None = None) -> Tensor:
    """The logarithm of the probability of each new token.

    Args:
        logits: For each new token a Tensor of shape [rows, vocabulary], as the model's head gives them.
        tokens: Tensor of shape [answers, new tokens], int64.
        beams: Tensor of shape [answers, new tokens], int64: of which row of `logits` each token is, below 0
            behind the end. None: answers are rows.
    Returns:
        Tensor of shape [answers, new tokens]. What stands behind the end means nothing.
    """
    found = []
    for step in range(tokens.shape[1]):
        rows = logits[step]
        if beams is not None:
            beam = beams[:, step].clamp(min=0)
            rows = rows[beam]
        token = tokens[:, step, None]
        chosen = rows.gather(1, token)[:, 0]
        found.append(chosen - rows.logsumexp(1))
    return torch.stack(found, dim=1)


def answer_lengths(tokens: Tensor, ends: Sequence[int], pad: int | None) -> Tensor:
    """How many tokens each answer has: up to and with the first that ends it, or else up to the padding.

    Args:
        tokens: Tensor of shape [answers, new tokens], int64.
        ends: Tokens that end an answer.
        pad: The padding token.
    Returns:
        Tensor of shape [answers], int64, each at least 1.

    >>> answer_lengths(torch.tensor([[5, 2, 2, 2], [5, 6, 7, 8], [5, 6, 0, 0]]), ends=[2], pad=0)
    tensor([2, 4, 2])
    """
    count = tokens.shape[1]
    place = torch.arange(1, count + 1, device=tokens.device)
    end_tokens = torch.tensor(list(ends), dtype=tokens.dtype, device=tokens.device)
    is_end = torch.isin(tokens, end_tokens)
    first_end = place.where(is_end, count + 1).amin(1)
    padding = -1 if pad is None else pad  # no token is -1
    last_word = place.where(tokens != padding, 0).amax(1).clamp(min=1)
    return first_end.where(is_end.any(1), last_word)
