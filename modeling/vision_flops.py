"""What vision towers cost: multiply-accumulates, attention in full, norms left out, as in visual_flops.py."""


def vit_macs(
    *, num_patches: int, class_tokens: int, patch_values: int, hidden_size: int, intermediate_size: int, num_blocks: int
) -> int:
    """Of a vision transformer on one picture: patch embedding, then blocks of four projections and an FFN of two matrices.

    Args:
        patch_values: numbers in a patch, all channels.
    """
    tokens = num_patches + class_tokens
    block = tokens * (4 * hidden_size**2 + 2 * hidden_size * intermediate_size) + 2 * tokens**2 * hidden_size
    return num_patches * patch_values * hidden_size + num_blocks * block
