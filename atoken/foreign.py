"""Names and fixed values in the published AToken files, and names in transformers' SigLIP2: tables, no code."""

from __future__ import annotations

from atoken import gaussian_decoder

# Patterns in the keys of the published files and their replacements, applied in order.
OFFICIAL_KEYS = {
    r"^encoder\.head\.attention\.to_": "pool.",
    r"^encoder\.head\.layernorm\.": "pool.norm.",
    r"^encoder\.head\.": "pool.",
    r"\.pos_embedder\.position_embedding\.": ".position.",
    r"\.input_layer\.": ".inputs.",
    r"\.attn\.to_": ".attention.",
    r"\.attn\.([qk])_rms_norm\.gamma$": r".attention.\1_norm.gain_HK",
    r"\.mlp\.mlp\.0\.": ".mlp.up.",
    r"\.mlp\.mlp\.2\.": ".mlp.down.",
    r"\.(post_layernorm|out_norm)\.": ".norm.",
    r"^decoder\.out_layer\.": "to_patch.",
    r"^gaussian_decoder\.out_layer\.": "gaussian_decoder.out.",
    r"^proj\.": "to_latent.",
}
# Fields that the published architecture fixes; a configuration with other values is refused.
OFFICIAL_FIXED = {
    "in_channels": 3072,
    "out_channels": 3072,
    "encoder_attn_mode": "full",
    "encoder_pe_mode": "joint",
    "encoder_qk_rms_norm": False,
    "encoder_use_bias": True,
    "encoder_use_rms_norm": False,
    "decoder_attn_mode": "full",
    "decoder_pe_mode": "joint",
    "decoder_qk_rms_norm": True,
    "decoder_use_bias": False,
    "decoder_use_rms_norm": True,
    "use_decoder": True,
    "quantizer_type": "fsq",
    "quantizer_codebook_size": 4096,
    "quantizer_num_codebooks": 8,
    "quantizer_chunk_size": 1,
}
TEXT_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "projection_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
OFFICIAL_GAUSSIANS = {
    "latent_channels": 768,  # the patch of a voxel
    "resolution": gaussian_decoder.RESOLUTION,
    "attn_mode": "swin",
    "window_size": gaussian_decoder.WINDOW,
    "representation_config": {
        "lr": {
            "_xyz": 1.0,
            "_features_dc": 1.0,
            "_opacity": 1.0,
            "_scaling": 1.0,
            "_rotation": gaussian_decoder.ROTATION_RATE,
        },
        "perturb_offset": True,
        "voxel_size": gaussian_decoder.REACH,
        "num_gaussians": gaussian_decoder.GAUSSIANS,
        "2d_filter_kernel_size": 0.1,  # of the renderer
        "3d_filter_kernel_size": gaussian_decoder.SCALE_LEAST,
        "scaling_bias": gaussian_decoder.SCALE_START,
        "opacity_bias": gaussian_decoder.OPACITY_START,
        "scaling_activation": "softplus",
    },
}
OFFICIAL_SIZES = {"model_channels": "width", "num_blocks": "layers", "num_heads": "heads", "mlp_channels": "mlp"}
# The same for the keys of transformers' SigLIP2 vision tower.
SIGLIP2_KEYS = {
    r"^embeddings\.patch_embedding\.": "encoder.inputs.",
    r"^embeddings\.position_embedding\.": "encoder.position.",
    r"^post_layernorm\.": "encoder.norm.",
    r"^head\.attention\.out_proj\.": "pool.out.",
    r"^head\.layernorm\.": "pool.norm.",
    r"^head\.": "pool.",
    r"^encoder\.layers\.": "encoder.blocks.",
    r"\.layer_norm([12])\.": r".norm\1.",
    r"\.self_attn\.out_proj\.": ".attention.out.",
    r"\.mlp\.fc1\.": ".mlp.up.",
    r"\.mlp\.fc2\.": ".mlp.down.",
}
