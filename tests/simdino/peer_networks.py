"""Networks of timm and Hugging Face, small, with the weights of a rule: `python -m tests.simdino.peer_networks` records
their tensors' names and shapes, and what they compute, in tests/data/peer_networks.json."""

import json
from pathlib import Path

import torch
from torch import nn

RECORDED = Path(__file__).parents[1] / "data" / "peer_networks.json"
SIDES = (32, 48)  # of the images: the one that the positions are for, and another
SHOWN = 16  # numbers that are recorded of a token


def fill(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that names and shapes determine; a norm's are near 1."""
    filled = {}
    for number, name in enumerate(sorted(shapes)):
        count = torch.arange(torch.Size(shapes[name]).numel(), dtype=torch.float64)
        near = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        filled[name] = (near + 0.1 * torch.sin((0.7 + 0.013 * number) * count + number)).view(shapes[name]).float()
    return filled


def images(side: int) -> torch.Tensor:
    """One image, of a rule, too."""
    return torch.sin(0.37 * torch.arange(3 * side**2, dtype=torch.float64)).view(1, 3, side, side).float()


def shown(tokens: torch.Tensor) -> list[float]:
    """The beginnings of the class token and of the last patch."""
    return torch.cat([tokens[0, 0, :SHOWN], tokens[0, -1, :SHOWN]]).tolist()


def hugging_face(kind: str, **more: object) -> tuple[nn.Module, dict]:
    """A model of transformers, and its config.json."""
    import transformers

    sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    model = getattr(transformers, f"{kind}Model")(config)
    return model, json.loads(config.to_json_string(use_diff=False))


def of_timm(**more: object) -> tuple[nn.Module, dict]:
    """A vision transformer of timm; it has no description."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3, "num_classes": 0}
    return VisionTransformer(**sizes, dynamic_img_size=True, **more), {}


def swiglu_of_timm() -> tuple[nn.Module, dict]:
    """As timm's vit_giant_patch14_dinov2."""
    from timm.layers import SwiGLUPacked

    return of_timm(init_values=1e-5, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=5.0)


PEERS = {
    "Dinov2Model": lambda: hugging_face("Dinov2", mlp_ratio=4),
    "Dinov2Model, SwiGLU": lambda: hugging_face("Dinov2", mlp_ratio=4, use_swiglu_ffn=True),
    "Dinov2WithRegistersModel": lambda: hugging_face("Dinov2WithRegisters", mlp_ratio=4, num_register_tokens=4),
    "ViTModel": lambda: hugging_face("ViT", intermediate_size=768),
    "timm vit_dino": of_timm,
    "timm vit_dinov2": lambda: of_timm(init_values=1e-5),
    "timm vit_reg4_dinov2": lambda: of_timm(init_values=1e-5, reg_tokens=4, no_embed_class=True),
    "timm vit_giant_dinov2": swiglu_of_timm,
}


def computed(peer: nn.Module, side: int) -> torch.Tensor:
    """Its tokens after the final norm."""
    with torch.no_grad():
        if hasattr(peer, "forward_features"):
            return peer.forward_features(images(side))
        return peer(images(side), interpolate_pos_encoding=True).last_hidden_state


def built(name: str) -> tuple[nn.Module, dict]:
    """A peer with the weights of the rule, and its description."""
    peer, config = PEERS[name]()
    peer.load_state_dict(fill({k: list(v.shape) for k, v in peer.state_dict().items()}))
    return peer.eval(), config


def main() -> None:
    """Record all peers."""
    recorded = {}
    for name in PEERS:
        peer, config = built(name)
        kept = ("model_type", "hidden_size", "num_attention_heads", "hidden_act", "layer_norm_eps", "num_hidden_layers")
        recorded[name] = {
            "config": {k: config[k] for k in kept if k in config},
            "shapes": {k: list(v.shape) for k, v in peer.state_dict().items()},
            "tokens": {side: [round(x, 7) for x in shown(computed(peer, side))] for side in SIDES},
        }
    rows = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in recorded.items())
    RECORDED.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
