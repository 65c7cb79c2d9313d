"""Where a ViT's class token looks."""

from __future__ import annotations

from typing import Any

import torch

# Older timm has it there alone.
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from torch import Tensor

from pathgen.models.encoder import Encoder


@torch.no_grad()
def class_attention(encoder: Encoder, images: Tensor) -> Tensor | None:
    """Attention of the class token to the patch tokens in the last block, as DINO shows it.

    (B, 3, H, W) in [0, 1] -> (B, heads, H / patch, W / patch), which with the rest of the tokens
    sum to 1 a head; None for a backbone without a class token or with attention of another kind.
    """
    backbone: Any = encoder.backbone
    blocks = getattr(backbone, "blocks", None)
    layer = getattr(blocks[-1], "attn", None) if blocks is not None and len(blocks) else None
    if not isinstance(layer, Attention) or getattr(backbone, "cls_token", None) is None:
        return None
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    was_training = encoder.training
    encoder.eval()
    try:
        backbone.forward_features(encoder._normalize(images))
    finally:
        hook.remove()
        encoder.train(was_training)
    tokens, heads = seen[0], layer.num_heads  # (B, N, D)
    query, key, _ = layer.qkv(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = layer.q_norm(query), layer.k_norm(key)  # (B, heads, N, D / heads)
    weights = (query[:, :, :1] @ key.transpose(-2, -1) * layer.scale).float().softmax(-1)
    patches = weights[:, :, 0, backbone.num_prefix_tokens :]
    side = encoder.patch_size
    height, width = (length // side for length in images.shape[-2:])
    shown: Tensor = patches.reshape(*patches.shape[:2], height, width)
    return shown
