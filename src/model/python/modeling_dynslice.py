"""A sliced model that dynslice wrote (checkpoint format 2), for transformers 4.57 and newer.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The decoder is that of the original model (configuration_dynslice.BASE_MODELS) with these differences: the residual stream has a width of its own at
every layer, so that the residual paths pass through shortcuts (where the bases on both sides differ); the norms divide
the sum of squares by the original hidden size; the embedding and the head may keep their original width, with a
rotation beside them; a layer may be an MLP alone, gated or not. This file travels with the checkpoint.
"""

import inspect
import math

import torch
from torch import nn
from torch.nn import functional

from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .configuration_dynslice import DynsliceConfig

MASK_FUNCTIONS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
# transformers 4 says input_embeds and wants cache_position; 5 says inputs_embeds and takes position_ids alone.
MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters


def fit(x, width):
    """The stream cut off, or filled up with zeros, to `width`."""
    return x[..., :width] if width <= x.shape[-1] else functional.pad(x, (0, width - x.shape[-1]))


class SymmetricShortcut(nn.Module):
    """x - AᵀA x, filled up with zeros."""

    def __init__(self, input_width, output_width, rank):
        super().__init__()
        self.output_width = output_width
        self.down = nn.Linear(input_width, rank, bias=False)

    def forward(self, x):
        return fit(x - functional.linear(self.down(x), self.down.weight.t()), self.output_width)


class LowRankShortcut(nn.Module):
    """x cut off or filled up with zeros, plus B A x."""

    def __init__(self, input_width, output_width, rank):
        super().__init__()
        self.output_width = output_width
        self.down = nn.Linear(input_width, rank, bias=False)
        self.up = nn.Linear(rank, output_width, bias=False)

    def forward(self, x):
        return fit(x, self.output_width) + self.up(self.down(x))


class FittingShortcut(nn.Module):
    """x cut off or filled up with zeros: what the two above are at rank 0, without a tensor."""

    def __init__(self, output_width):
        super().__init__()
        self.output_width = output_width

    def forward(self, x):
        return fit(x, self.output_width)


def make_shortcut(description, input_width, output_width):
    kind, rank = description["kind"], description["rank"]
    if kind == "identity" and input_width == output_width:
        return nn.Identity()
    if kind == "matrix":
        return nn.Linear(input_width, output_width, bias=False)
    if kind == "symmetric" and input_width <= output_width:
        return SymmetricShortcut(input_width, output_width, rank) if rank > 0 else FittingShortcut(output_width)
    if kind == "low_rank":
        return LowRankShortcut(input_width, output_width, rank) if rank > 0 else FittingShortcut(output_width)
    raise ValueError(f"config.json: shortcut {kind!r} from width {input_width} to {output_width} is not known")


class DynsliceRMSNorm(nn.Module):
    """Divides by the root of (sum of squares / divisor), that of the stream being the original hidden size."""

    def __init__(self, config, width, weighted, divisor=None):
        super().__init__()
        self.divisor = divisor or config.hidden_size
        self.eps = config.rms_norm_eps
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if weighted else None)

    def forward(self, x):
        wide = x.float()
        scale = torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.divisor + self.eps)
        normed = (wide * scale).to(x.dtype)
        return normed if self.weight is None else self.weight * normed


class ScaledEmbedding(nn.Embedding):
    """Rows times a number, rounded to their dtype."""

    def __init__(self, rows, width, scale):
        super().__init__(rows, width)
        self.scale = scale

    def forward(self, input_ids):
        return super().forward(input_ids) * torch.tensor(self.scale, dtype=self.weight.dtype)


class LayerScale(nn.Module):
    """Multiplies a stream by one number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight


def make_norm(config, width, weighted):
    """A norm of the stream. Layer norms whose weights are folded into what follows them are RMS norms: what enters them is centred."""
    if config.layer_norms and weighted:
        return nn.LayerNorm(width, eps=config.rms_norm_eps)
    return DynsliceRMSNorm(config, width, weighted)


def inverse_frequencies(config, layer_type, is_long=False):
    """Of the rotary pairs in layers of that type, fp32 [pairs], on the CPU; `is_long` where a context is longer than what the
    model was trained for at first."""
    rope = config.rope_of(layer_type)
    channels = config.rotary_channels_of(layer_type)
    exponents = torch.arange(0, channels, 2, dtype=torch.float, device="cpu") / channels
    frequencies = 1.0 / rope["rope_theta"] ** exponents
    divisors = config.dynslice.get("rope_frequency_divisors")
    if divisors:
        return frequencies / torch.tensor(divisors, dtype=torch.float, device="cpu")
    if rope["rope_type"] == "longrope":
        divisors = rope["long_factor" if is_long else "short_factor"]
        return frequencies / torch.tensor(divisors, dtype=torch.float, device="cpu")
    if rope["rope_type"] == "linear":
        return frequencies / rope["factor"]
    if rope["rope_type"] == "proportional":  # the other pairs stay as they are
        turning = int(rope.get("partial_rotary_factor", 1.0) * channels // 2)
        return torch.cat((frequencies[:turning], torch.zeros_like(frequencies[turning:])))
    if rope["rope_type"] == "llama3":
        # Long wavelengths are stretched, short ones kept, those between interpolated.
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * frequencies / rope["factor"] + smooth * frequencies
    if rope["rope_type"] == "yarn":
        low, high = (pair_that_turns(channels, rope, rope.get(key) or turns) for key, turns in (("beta_fast", 32), ("beta_slow", 1)))
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, channels - 1)
        pairs = torch.arange(channels // 2, dtype=torch.float, device="cpu")
        stretched = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
        return frequencies / rope["factor"] * stretched + frequencies * (1 - stretched)
    return frequencies


def pair_that_turns(channels, rope, turns):
    """The rotary pair that turns so often within the length that the model was trained for, in fractions."""
    length = rope["original_max_position_embeddings"]
    return channels * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))


def attention_factor(rope):
    """What yarn and longrope multiply queries and keys by."""
    if rope["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if rope.get("attention_factor"):
        return rope["attention_factor"]

    def scale(share):
        return 0.1 * share * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1)


class DynsliceRotary(nn.Module):
    """Cosines and sines of positions, and what queries are multiplied by there. Its frequencies are no buffer: models are built without memory, and only what
    is in the checkpoint is filled in."""

    def __init__(self, config, layer_type):
        super().__init__()
        self.config = config
        self.layer_type = layer_type
        self.frequencies = {}

    def forward(self, x, position_ids):
        rope = self.config.rope_of(self.layer_type)
        original = rope.get("original_max_position_embeddings")
        is_long = rope["rope_type"] == "longrope" and position_ids.max().item() + 1 > original
        place = (x.device, is_long)
        if place not in self.frequencies:
            self.frequencies[place] = inverse_frequencies(self.config, self.layer_type, is_long).to(x.device)
        angles = position_ids[:, None, :, None].float() * self.frequencies[place]
        factor = attention_factor(rope)
        scale = None  # of the queries, by position
        if rope.get("llama_4_scaling_beta") and self.config.base_model_type == "ministral3":
            turns = (position_ids[:, None, :, None] // rope["original_max_position_embeddings"]).float()
            scale = (1 + rope["llama_4_scaling_beta"] * torch.log1p(turns)).to(x.dtype)
        return (angles.cos() * factor).to(x.dtype), (angles.sin() * factor).to(x.dtype), scale


def rotate(x, cos, sin, is_interleaved=False):
    """The first channels of x [..., head_dim] turned by as many pairs as there are; cos, sin [..., pairs]."""
    turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    if is_interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        return torch.cat((torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2), rest), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **kwargs):
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class Vector(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*sizes))


def delta_rule(query, key, value, decay, rate, memory):
    """What tokens read of a memory S of every head: S <- exp(decay) S, S <- S + k (rate (v - k S)), q S; in chunks of 64 tokens,
    whose corrections solve a unit triangular system. All [batch, heads, tokens, ...], fp32."""
    read = []
    for q, k, v, d, r in zip(*(x.split(64, dim=2) for x in (query, key, value, decay, rate))):
        total = d.cumsum(-1)
        since_start = total.exp()[..., None]
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        between = (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()
        weighted = k * r[..., None]
        alone = v * r[..., None] - (weighted * since_start) @ memory
        written = torch.linalg.solve_triangular((weighted @ k.mT) * between, alone, upper=False, unitriangular=True)
        read.append((q * since_start) @ memory + ((q @ k.mT) * between) @ written)
        memory = memory * since_start[..., -1:, :] + (k * (total[..., -1:] - total).exp()[..., None]).mT @ written
    return torch.cat(read, dim=2), memory


class DynsliceDeltaNet(nn.Module):
    """A gated delta net. What it remembers lies beside the cache of keys and values, which gets keys of no meaning for the length
    that it tells."""

    def __init__(self, config, shape, index):
        super().__init__()
        self.layer_idx = index
        self.key_heads, self.heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.keys, self.values = self.key_heads * self.key_dim, self.heads * self.value_dim
        self.taps, self.eps = config.linear_conv_kernel_dim, config.rms_norm_eps
        channels, width = 2 * self.keys + self.values, shape["input_width"]
        self.in_proj_qkv = nn.Linear(width, channels, bias=False)
        self.in_proj_z = nn.Linear(width, self.values, bias=False)
        self.in_proj_b = nn.Linear(width, self.heads, bias=False)
        self.in_proj_a = nn.Linear(width, self.heads, bias=False)
        self.conv1d = Vector(channels, 1, self.taps)
        self.dt_bias, self.A_log, self.norm = Vector(self.heads), Vector(self.heads), Vector(self.value_dim)
        self.out_proj = nn.Linear(self.values, shape["middle_width"], bias=False)

    def state(self, x, past_key_values):
        """The tokens before x as the convolution sees them, and the memory."""
        states = remembered(past_key_values)
        if self.layer_idx in states:
            return states[self.layer_idx]
        before = x.new_zeros(x.shape[0], self.taps - 1, 2 * self.keys + self.values)
        return before, torch.zeros(x.shape[0], self.heads, self.key_dim, self.value_dim, device=x.device)

    def forward(self, x, token_mask=None, past_key_values=None, cache_position=None, **kwargs):
        if token_mask is not None:
            x = x * token_mask[:, -x.shape[1] :, None].to(x.dtype)
        before, memory = self.state(x, past_key_values)
        seen = torch.cat((before, self.in_proj_qkv(x)), dim=1)
        mixed = sum(seen[:, tap : tap + x.shape[1]] * self.conv1d.weight[:, 0, tap] for tap in range(self.taps))
        query, key, value = functional.silu(mixed).split((self.keys, self.keys, self.values), dim=-1)
        query, key = (self.by_head(part, self.key_heads, self.key_dim) for part in (query, key))
        rate = self.in_proj_b(x).float().sigmoid().transpose(1, 2)
        decay = -self.A_log.weight.float().exp() * functional.softplus(self.in_proj_a(x).float() + self.dt_bias.weight.float())
        value = self.by_head(value, self.heads, self.value_dim)
        read, memory = delta_rule(unit(query) * self.key_dim**-0.5, unit(key), value, decay.transpose(1, 2), rate, memory)
        if past_key_values is not None:
            remembered(past_key_values)[self.layer_idx] = seen[:, x.shape[1] :], memory
            nothing = x.new_zeros(x.shape[0], 1, x.shape[1], 1)
            past_key_values.update(nothing, nothing, self.layer_idx, cache_kwargs={"cache_position": cache_position})
        read = read.transpose(1, 2)
        normed = read * torch.rsqrt(read.square().mean(-1, keepdim=True) + self.eps)
        gate = functional.silu(self.in_proj_z(x).float()).view_as(normed)
        return self.out_proj((self.norm.weight * normed.to(x.dtype) * gate.to(x.dtype)).flatten(2)), None

    def by_head(self, x, heads, width):
        x = x.reshape(*x.shape[:2], heads, width).float().transpose(1, 2)
        return x.repeat_interleave(self.heads // heads, dim=1)


def unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def remembered(cache):
    """What the gated delta nets remember of the sequences in this cache, by layer."""
    if cache is None:
        return {}
    if not hasattr(cache, "delta_states"):
        cache.delta_states = {}
        reorder = cache.reorder_cache

        def reorder_all(beams):
            reorder(beams)
            for layer, state in cache.delta_states.items():
                cache.delta_states[layer] = tuple(part.index_select(0, beams.to(part.device)) for part in state)

        cache.reorder_cache = reorder_all
    return cache.delta_states


class DynsliceAttention(nn.Module):
    def __init__(self, config, shape, index):
        super().__init__()
        heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
        self.config = config
        self.layer_idx = index
        self.head_dim = config.head_dim_of(config.layer_types[index])
        self.num_key_value_groups = heads // kv_heads
        self.scaling = config.attention_scale
        self.attention_dropout = config.attention_dropout
        self.is_rotated = bool(config.no_rope_layers[index])
        self.is_causal = True
        self.score_cap = config.attn_logit_softcapping
        self.sliding_window = config.sliding_window if config.layer_types[index] == "sliding_attention" else None
        self.has_output_gate = config.output_gates  # q_proj gives the query and the gate of every head
        width = heads * self.head_dim * (2 if self.has_output_gate else 1)
        self.q_proj = nn.Linear(shape["input_width"], width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(shape["input_width"], kv_heads * self.head_dim, bias=config.qkv_bias)
        self.v_proj = None
        if config.has_values(config.layer_types[index]):
            self.v_proj = nn.Linear(shape["input_width"], kv_heads * self.head_dim, bias=config.qkv_bias)
        self.v_norm = nn.Identity()
        if config.value_norms:
            self.v_norm = DynsliceRMSNorm(config, self.head_dim, False, divisor=self.head_dim)
        self.o_proj = nn.Linear(heads * self.head_dim, shape["middle_width"], bias=config.o_bias)
        self.q_norm = self.k_norm = nn.Identity()
        self.norms_whole, self.rotates_first = config.head_norms == "whole", config.head_norms == "rotated"
        if config.head_norms:
            widths = [self.head_dim * (count if self.norms_whole else 1) for count in (heads, kv_heads)]
            self.q_norm, self.k_norm = (DynsliceRMSNorm(config, width, True, divisor=width) for width in widths)

    def forward(
        self, x, position_embeddings, attention_mask=None, past_key_values=None, cache_position=None, token_mask=None, **kwargs
    ):
        by_head = (*x.shape[:-1], -1, self.head_dim)
        cos, sin, query_scale = position_embeddings
        query, gate = self.q_proj(x), None
        if self.has_output_gate:
            query, gate = query.view(*x.shape[:-1], -1, 2 * self.head_dim).chunk(2, dim=-1)
            query, gate = query.flatten(-2), gate.flatten(-2).sigmoid()
        query = self.place(query, self.q_norm, by_head, cos, sin)
        key = self.k_proj(x)
        value = self.v_norm((key if self.v_proj is None else self.v_proj(x)).view(by_head)).transpose(1, 2)
        key = self.place(key, self.k_norm, by_head, cos, sin)
        if query_scale is not None:
            query = query * query_scale
        if past_key_values is not None:
            # A static cache of transformers 4 needs the positions; 5 counts by itself.
            place = {"cache_position": cache_position}
            key, value = past_key_values.update(key, value, self.layer_idx, cache_kwargs=place)
        attend = eager_attention
        if self.score_cap is not None:  # others would leave the cap out without a word
            kwargs["softcap"] = self.score_cap
        elif self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        attended = attended.reshape(*x.shape[:-1], -1)
        return self.o_proj(attended if gate is None else attended * gate), weights

    def place(self, x, norm, by_head, cos, sin):
        """Queries or keys by head, normed and rotated in the model's order."""
        x = norm(x).view(by_head) if self.norms_whole else x.view(by_head)
        if not self.norms_whole and not self.rotates_first:
            x = norm(x)
        x = x.transpose(1, 2)
        if self.is_rotated:
            x = rotate(x, cos, sin, self.config.interleaved_rotary)
        return norm(x) if self.rotates_first else x


class DynsliceMLP(nn.Module):
    def __init__(self, config, shape):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.gate_proj = None
        if shape.get("gated", True):
            self.gate_proj = nn.Linear(shape["middle_width"], shape["intermediate_size"], bias=config.gated_bias)
        self.up_proj = nn.Linear(shape["middle_width"], shape["intermediate_size"], bias=config.gated_bias)
        self.down_proj = nn.Linear(shape["intermediate_size"], shape["output_width"], bias=config.gated_bias)

    def forward(self, x):
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class DynsliceDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, index):
        super().__init__()
        shape = config.dynslice["layers"][index]
        widths = shape["input_width"], shape["middle_width"], shape["output_width"]
        self.attention_type = config.layer_types[index]
        self.self_attn = self.linear_attn = None  # a layer may be an MLP alone
        self.branch_scale = config.branch_scale
        self.post_self_attn_layernorm = self.post_mlp_layernorm = nn.Identity()
        self.input_layernorm = self.post_attention_layernorm = nn.Identity()
        if config.branch_norms:
            self.post_mlp_layernorm = DynsliceRMSNorm(config, widths[2], True)
        if shape["num_attention_heads"] > 0:
            if config.input_norms:
                self.input_layernorm = make_norm(config, widths[0], shape["norm_weights"])
            mixer = DynsliceDeltaNet if config.delta_layers[index] else DynsliceAttention
            setattr(self, "linear_attn" if config.delta_layers[index] else "self_attn", mixer(config, shape, index))
            if config.branch_norms:
                self.post_self_attn_layernorm = DynsliceRMSNorm(config, widths[1], True)
        self.attn_shortcut = make_shortcut(shape["attn_shortcut"], widths[0], widths[1])
        if config.input_norms:
            self.post_attention_layernorm = make_norm(config, widths[1], shape["norm_weights"])
        self.mlp = DynsliceMLP(config, shape)
        self.mlp_shortcut = make_shortcut(shape["mlp_shortcut"], widths[1], widths[2])
        self.layer_scalar = LayerScale() if config.layer_scales else nn.Identity()

    def forward(self, x, **kwargs):
        weights = None
        mixer = self.self_attn if self.linear_attn is None else self.linear_attn
        if mixer is not None:
            attended, weights = mixer(self.input_layernorm(x), **kwargs)
            x = self.attn_shortcut(x) + self.post_self_attn_layernorm(attended) * self.branch_scale
        added = self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))
        return self.layer_scalar(self.mlp_shortcut(x) + added * self.branch_scale), weights


class DynslicePreTrainedModel(PreTrainedModel):
    config_class = DynsliceConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DynsliceDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class DynsliceModel(DynslicePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        shapes = config.dynslice
        width = config.hidden_size if shapes["embedding_rotation"] else shapes["embedding_width"]
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        if config.embedding_scale != 1 and not config.scales_given_embeddings:
            self.embed_tokens = ScaledEmbedding(config.vocab_size, width, config.embedding_scale)
        self.embed_positions = None
        if config.first_position is not None:
            self.embed_positions = nn.Embedding(config.first_position + config.max_position_embeddings, width)
        self.embed_rotation = nn.Identity()
        if shapes["embedding_rotation"]:
            self.embed_rotation = nn.Linear(config.hidden_size, shapes["embedding_width"], bias=False)
        self.layers = nn.ModuleList(DynsliceDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = make_norm(config, shapes["head_width"], shapes["final_norm_weight"])
        self.head_rotation = nn.Identity()
        if shapes["head_rotation"]:
            self.head_rotation = nn.Linear(shapes["head_width"], config.hidden_size, bias=config.layer_norms)
        self.rotary = nn.ModuleDict({kind: DynsliceRotary(config, kind) for kind in set(config.layer_types)})
        self.gradient_checkpointing = False
        self.post_init()

    def make_masks(self, x, attention_mask, past_key_values, position_ids, cache_position):
        if isinstance(attention_mask, dict):  # generate() with a static cache has made them
            return attention_mask
        arguments = {
            "config": self.config,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
            "inputs_embeds" if "inputs_embeds" in MASK_ARGUMENTS else "input_embeds": x,
        }
        if "cache_position" in MASK_ARGUMENTS:
            arguments["cache_position"] = cache_position
        return {kind: MASK_FUNCTIONS[kind](**arguments) for kind in set(self.config.layer_types)}

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """`last_hidden_state` is what the head reads; `hidden_states`, where asked for, has the stream before every
        layer, each of its own width, and `last_hidden_state`. `inputs_embeds` are what `embed_tokens` gives."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if self.config.scales_given_embeddings:  # Granite's scale is not the embedding's own
            inputs_embeds = inputs_embeds * torch.tensor(self.config.embedding_scale, dtype=inputs_embeds.dtype)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        cache_position = kwargs.pop("cache_position", None)  # given by generate() of transformers 4
        if cache_position is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            cache_position = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        if self.embed_positions is not None:
            inputs_embeds = inputs_embeds + self.embed_positions(position_ids + self.config.first_position)
        if self.config.centres_embedding:
            inputs_embeds = inputs_embeds - inputs_embeds.mean(-1, keepdim=True)
        x = self.embed_rotation(inputs_embeds)
        is_padded = isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2
        token_mask = attention_mask if is_padded and any(self.config.delta_layers) else None
        masks = self.make_masks(x, attention_mask, past_key_values, position_ids, cache_position)
        position_embeddings = {kind: rotary(x, position_ids) for kind, rotary in self.rotary.items()}

        states, attentions = (), ()
        for layer in self.layers:
            states += (x,) if keep_states else ()
            x, weights = layer(
                x,
                position_embeddings=position_embeddings[layer.attention_type],
                attention_mask=masks[layer.attention_type],
                token_mask=token_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_ids=position_ids,
                cache_position=cache_position,
                **kwargs,
            )
            attentions += (weights,) if keep_attentions and layer.linear_attn is None else ()
        x = self.head_rotation(self.norm(x))
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states, x) if keep_states else None,
            attentions=attentions if keep_attentions else None,
        )


class DynsliceForCausalLM(DynslicePreTrainedModel, GenerationMixin):
    # transformers 5 reads where the weight comes from, 4 the keys alone.
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DynsliceModel(config)
        self.vocab_size = config.vocab_size
        width = config.hidden_size if config.dynslice["head_rotation"] else config.dynslice["head_width"]
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :]) * self.config.logit_scale
        cap = self.config.final_logit_softcapping
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
