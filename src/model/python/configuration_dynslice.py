"""Configuration of a sliced model that dynslice wrote (checkpoint format 2), for transformers.

A sliced model is one of BASE_MODELS whose layers have shapes of their own. config.json keeps the keys of the
original model; the widths are in its "dynslice" object. This file travels with the checkpoint.
"""

import math

from transformers import PretrainedConfig

FORMAT = 2
# What sets the original models apart, and what their own configuration classes assume where config.json is silent.
# Biases: "flags" are attention_bias and mlp_bias, "attention" the first of them alone, "readers" the same without attention's
# output, "output" both and one of its own for attention's output, "all" those of all linears, always. Windows: of all layers, of some,
# or "types", of those that layer_types names.
BASE_MODELS = {
    "llama": {"max_position_embeddings": 2048, "biases": "flags"},
    "mistral": {"max_position_embeddings": 131072, "window": "all"},
    "qwen2": {"max_position_embeddings": 32768, "biases": "qkv", "window": "some"},
    "qwen3": {
        "max_position_embeddings": 32768,
        "biases": "attention",
        "window": "some",
        "head_dim": 128,
        "head_norms": "head",  # of queries and keys, before the rotation; "rotated": behind it; "whole": of all heads together
    },
    "gemma3_text": {
        "max_position_embeddings": 131072,
        "biases": "attention",
        "window": "types",
        "window_period": 6,
        "head_dim": 256,
        "head_norms": "head",
        "branch_norms": True,  # of what attention and MLP write
        "activation": "gelu_pytorch_tanh",
        "activation_key": "hidden_activation",
        "scaled_embedding": True,  # by the root of hidden_size
        "rope_theta": 1000000.0,
        "sliding_rope_theta": 10000.0,  # of the layers that slide
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    "smollm3": {
        "max_position_embeddings": 32768,
        "biases": "flags",
        "window": "some",
        "rope_theta": 2000000.0,
        "unrotated_period": 4,  # every such layer has no rotary embedding, unless no_rope_layers says which
        "tie_word_embeddings": True,
    },
    "seed_oss": {"max_position_embeddings": 524288, "biases": "output", "head_dim": 128},
    "gemma2": {
        "max_position_embeddings": 8192,
        "biases": "attention",
        "window": "types",
        "window_period": 2,
        "head_dim": 256,
        "branch_norms": True,
        "score_cap": 50.0,  # of attention's scores, and of the logits; null in config.json means none
        "logit_cap": 30.0,
        "activation": "gelu_pytorch_tanh",
        "activation_key": "hidden_activation",
        "scaled_embedding": True,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    "ministral3": {"max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "window": "all", "sliding_window": None, "head_dim": 128},
    "olmo2": {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "biases": "attention",
        "head_norms": "whole",
        "input_norms": False,  # in front of attention and MLP
        "branch_norms": True,
    },
    "olmo3": {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "biases": "attention",
        "window": "types",
        "window_period": 4,
        "rope_theta": 500000.0,
        "sliding_rope_theta": 500000.0,
        "head_norms": "whole",
        "input_norms": False,
        "branch_norms": True,
    },
    "granite": {
        "max_position_embeddings": 2048,
        "biases": "flags",
        "multipliers": True,  # of scores, embedding and branches, and a divisor of the logits
    },
    "exaone4": {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "window": "types",
        "window_period": 4,
        "rotates_sliding_only": True,  # where there is a sliding window
        "head_norms": "head",
        "input_norms": False,
        "branch_norms": True,
    },
    "hunyuan_v1_dense": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "biases": "attention", "head_norms": "rotated"},
    "phi3": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "window": "all", "sliding_window": None, "rotary_share": 1.0},
    "glm4": {
        "rms_norm_eps": 1.5625e-7,
        "max_position_embeddings": 131072,
        "biases": "readers",
        "head_dim": 128,
        "rotary_share": 0.5,  # of a head
        "interleaved_rotary": True,  # pairs are (2j, 2j + 1)
        "branch_norms": True,
    },
    "opt": {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "biases": "all",
        "layer_norms": True,  # with biases; of those without weights the centring is in the weights around them
        "first_position": 2,  # row of a matrix of positions, in the place of rotary embeddings
        "activation": "relu",
        "activation_key": "activation_function",
        "tie_word_embeddings": True,
    },
    "qwen3_5_text": {
        "max_position_embeddings": 32768,
        "biases": "attention",
        "head_dim": 256,
        "head_norms": "head",
        "rotary_share": 0.25,
        "delta_period": 4,  # all other layers have a gated delta net in the place of attention, whose output has gates
    },
    "gemma4_text": {
        "max_position_embeddings": 131072,
        "biases": "attention",
        "window": "types",
        "window_period": 6,
        "sliding_window": 512,
        "head_dim": 256,
        "global_head_dim": 512,  # of layers that see all; with attention_k_eq_v their values are the keys as projected
        "attention_scale": 1.0,  # of scores
        "head_norms": "head",
        "value_norms": True,  # of every head, without weights
        "branch_norms": True,
        "layer_scales": True,  # of the streams that leave layers
        "activation": "gelu_pytorch_tanh",
        "activation_key": "hidden_activation",
        "scaled_embedding": True,
        "rope_theta": 1000000.0,
        "sliding_rope_theta": 10000.0,
        "turning_share": 0.25,  # of the pairs of heads in layers that see all (rope_type "proportional")
        "tie_word_embeddings": True,
    },
}
SLIDING_WINDOW = 4096
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
MAX_WINDOW_LAYERS = 28


class DynsliceConfig(PretrainedConfig):
    model_type = "dynslice"
    has_no_defaults_at_init = True  # every model has shapes of its own
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, dynslice=None, base_model_type="llama", tie_word_embeddings=None, **kwargs):
        shapes = dynslice or {}
        if shapes.get("format") != FORMAT:
            raise ValueError(
                f"config.json: dynslice.format is {shapes.get('format')!r}; this modeling code reads format {FORMAT}"
            )
        if base_model_type not in BASE_MODELS:
            raise ValueError(
                f"config.json: base_model_type is {base_model_type!r}; known are {', '.join(BASE_MODELS)}"
            )
        base = BASE_MODELS[base_model_type]
        self.dynslice = shapes
        self.base_model_type = base_model_type
        self.vocab_size = kwargs.pop("vocab_size")
        self.hidden_size = kwargs.pop("hidden_size")  # of the original model: the norms divide by it
        self.num_hidden_layers = len(shapes["layers"])
        kwargs.pop("num_hidden_layers", None)
        self.num_attention_heads = kwargs.pop("num_attention_heads")
        self.num_key_value_heads = kwargs.pop("num_key_value_heads", None) or shapes["layers"][0]["num_key_value_heads"]
        self.head_dim = kwargs.pop("head_dim", None) or base.get("head_dim") or self.hidden_size // self.num_attention_heads
        self.max_position_embeddings = kwargs.pop("max_position_embeddings", base["max_position_embeddings"])
        self.rms_norm_eps = kwargs.pop("rms_norm_eps", base.get("rms_norm_eps", 1e-6))
        self.hidden_act = kwargs.pop(base.get("activation_key", "hidden_act"), base.get("activation", "silu"))
        setattr(self, base.get("activation_key", "hidden_act"), self.hidden_act)
        self.attention_scale = kwargs.pop("query_pre_attn_scalar", base.get("query_pre_attn_scalar", self.head_dim)) ** -0.5
        if "attention_scale" in base:
            self.attention_scale = base["attention_scale"]
        if "global_head_dim" in base:
            self.global_head_dim = kwargs.pop("global_head_dim", base["global_head_dim"])
            kwargs.pop("num_kv_shared_layers", None)  # 0; caches of transformers 4 would have no layers
        if "query_pre_attn_scalar" in base:
            self.query_pre_attn_scalar = self.attention_scale**-2
        self._read_scales(kwargs)
        self.attention_bias = kwargs.pop("attention_bias", base.get("biases") == "output")
        self.attention_out_bias = kwargs.pop("attention_out_bias", False)
        self.mlp_bias = kwargs.pop("mlp_bias", False)
        self.attention_dropout = kwargs.pop("attention_dropout", 0.0)
        self.initializer_range = kwargs.pop("initializer_range", 0.02)
        self.use_cache = kwargs.pop("use_cache", True)
        if self.hidden_act != base.get("activation", "silu"):
            raise ValueError(f"config.json: activation {self.hidden_act!r}: only {base.get('activation', 'silu')!r} is known")
        self._read_delta(kwargs)
        self._read_window(kwargs)
        period = kwargs.pop("no_rope_layer_interval", base.get("unrotated_period"))
        if "first_position" in base:
            period = 1
        rotated = [int(period is None or (i + 1) % period != 0) for i in range(self.num_hidden_layers)]
        if base.get("rotates_sliding_only") and self.has_window:
            rotated = [int(kind == "sliding_attention") for kind in self.layer_types]
        self.no_rope_layers = kwargs.pop("no_rope_layers", None) or rotated  # 1: the layer has a rotary embedding
        self._read_rope(kwargs)
        if tie_word_embeddings is None:
            tie_word_embeddings = base.get("tie_word_embeddings", False)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def _read_scales(self, kwargs):
        """Granite's multipliers and Gemma 2's caps; 1 and None in other models."""
        base = BASE_MODELS[self.base_model_type]
        self.embedding_scale = self.hidden_size**0.5 if base.get("scaled_embedding") else 1.0
        self.branch_scale = self.logit_scale = 1.0
        if base.get("multipliers"):
            self.attention_multiplier = self.attention_scale = kwargs.pop("attention_multiplier", 1.0)
            self.embedding_multiplier = self.embedding_scale = kwargs.pop("embedding_multiplier", 1.0)
            self.residual_multiplier = self.branch_scale = kwargs.pop("residual_multiplier", 1.0)
            self.logits_scaling = kwargs.pop("logits_scaling", 1.0)
            self.logit_scale = 1 / self.logits_scaling
        self.attn_logit_softcapping = kwargs.pop("attn_logit_softcapping", base.get("score_cap"))
        self.final_logit_softcapping = kwargs.pop("final_logit_softcapping", base.get("logit_cap"))

    def _read_delta(self, kwargs):
        """Which layers have a gated delta net in the place of attention, and its sizes."""
        period = BASE_MODELS[self.base_model_type].get("delta_period")
        types = kwargs.pop("delta_layers", None)  # as save_pretrained wrote it
        self.delta_layers = [False] * self.num_hidden_layers
        if period is None:
            return
        for key, usual in (("num_key_heads", 16), ("num_value_heads", 32), ("key_head_dim", 128), ("value_head_dim", 128), ("conv_kernel_dim", 4)):
            setattr(self, f"linear_{key}", kwargs.pop(f"linear_{key}", usual))
        names, period = kwargs.pop("layer_types", None), kwargs.pop("full_attention_interval", period)
        for i in range(self.num_hidden_layers):
            self.delta_layers[i] = types[i] if types else names[i] == "linear_attention" if names else (i + 1) % period != 0

    def _read_window(self, kwargs):
        """`layer_types` for every base model, and `sliding_window`, None where no layer slides."""
        count = self.num_hidden_layers
        window = kwargs.pop("sliding_window", BASE_MODELS[self.base_model_type].get("sliding_window", SLIDING_WINDOW))
        types = kwargs.pop("layer_types", None)
        first = kwargs.pop("max_window_layers", MAX_WINDOW_LAYERS)
        enabled = kwargs.pop("use_sliding_window", False)
        slides = [False] * count
        rule = BASE_MODELS[self.base_model_type].get("window")
        if rule == "all":
            slides = [window is not None] * count
        elif rule == "types" and window is not None:
            period = kwargs.pop("sliding_window_pattern", BASE_MODELS[self.base_model_type]["window_period"])
            slides = [types[i] == "sliding_attention" if types else (i + 1) % period != 0 for i in range(count)]
        elif rule == "some" and enabled and window is not None:
            slides = [types[i] == "sliding_attention" if types else i >= first for i in range(count)]
        self.has_window = window is not None
        self.sliding_window = window if any(slides) else None
        self.use_sliding_window = any(slides)
        self.max_window_layers = first
        self.layer_types = ["sliding_attention" if slide else "full_attention" for slide in slides]

    def _read_rope(self, kwargs):
        """One dictionary for what transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters) write, and one more
        where the layers that slide rotate in a way of their own."""
        base = BASE_MODELS[self.base_model_type]
        theta = kwargs.pop("rope_theta", None) or base.get("rope_theta", 10000.0)
        share = kwargs.pop("partial_rotary_factor", None) or base.get("rotary_share", 1.0)
        local_theta = kwargs.pop("rope_local_base_freq", None) or base.get("sliding_rope_theta")
        scaling = kwargs.pop("rope_scaling", None)
        parameters = kwargs.pop("rope_parameters", None) or {}
        if local_theta is not None:
            sliding = parameters.get("sliding_attention") or {}
            self.rope_parameters = {
                "full_attention": self._complete(parameters.get("full_attention") or scaling or self._usual_rope(), theta, kwargs),
                "sliding_attention": self._complete(sliding, local_theta, kwargs),
            }
        else:
            self.rope_parameters = self._complete(parameters or scaling or {}, theta, kwargs)
        if "rotary_share" in base:
            share = self.rope_parameters.setdefault("partial_rotary_factor", share)
        self.rotary_share = share

    def _usual_rope(self):
        share = BASE_MODELS[self.base_model_type].get("turning_share")
        return {} if share is None else {"rope_type": "proportional", "partial_rotary_factor": share}

    def _complete(self, rope, theta, kwargs):
        rope = dict(rope)
        old_name = rope.pop("type", None)
        rope.setdefault("rope_type", old_name or "default")
        rope.setdefault("rope_theta", theta)
        if rope["rope_type"] == "dynamic" and self.base_model_type == "hunyuan_v1_dense" and rope.get("alpha"):
            theta = rope["rope_theta"] * rope["alpha"] ** (self.head_dim / (self.head_dim - 2))
            rope = {"rope_type": "default", "rope_theta": theta}
        if self.base_model_type == "phi3" and rope["rope_type"] in ("su", "yarn"):
            rope["rope_type"] = "longrope"
        known = {"phi3": (*ROPE_TYPES, "longrope"), "gemma4_text": (*ROPE_TYPES, "proportional")}.get(self.base_model_type, ROPE_TYPES)
        if rope["rope_type"] not in known:
            raise ValueError(f"config.json: rope_type is {rope['rope_type']!r}; known are {', '.join(known)}")
        if rope["rope_type"] in ("llama3", "yarn", "longrope") and "original_max_position_embeddings" not in rope:
            rope["original_max_position_embeddings"] = kwargs.get(
                "original_max_position_embeddings", 4096 if self.base_model_type == "phi3" else self.max_position_embeddings
            )
        if rope["rope_type"] == "longrope" and not rope.get("attention_factor"):
            original = rope["original_max_position_embeddings"]
            factor = rope.get("factor") or self.max_position_embeddings / original
            rope["attention_factor"] = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return rope

    @property
    def _biases(self):
        return BASE_MODELS[self.base_model_type].get("biases")

    @property
    def qkv_bias(self):
        return self._biases in ("qkv", "all") or (self._biases in ("flags", "attention", "readers", "output") and self.attention_bias)

    @property
    def o_bias(self):
        if self._biases == "output":
            return self.attention_out_bias
        return self._biases == "all" or (self._biases in ("flags", "attention") and self.attention_bias)

    @property
    def gated_bias(self):
        return self._biases == "all" or (self._biases in ("flags", "output") and self.mlp_bias)

    def head_dim_of(self, layer_type):
        """The width of a head in layers of that type."""
        return getattr(self, "global_head_dim", self.head_dim) if layer_type == "full_attention" else self.head_dim

    def rotary_channels_of(self, layer_type):
        """Channels of such a head that are rotated, the first ones."""
        return int(self.head_dim_of(layer_type) * self.rotary_share)

    def has_values(self, layer_type):
        """Whether such layers project values; if not, these are the keys as projected."""
        return layer_type != "full_attention" or not getattr(self, "attention_k_eq_v", False)

    @property
    def value_norms(self):
        return BASE_MODELS[self.base_model_type].get("value_norms", False)

    @property
    def layer_scales(self):
        return BASE_MODELS[self.base_model_type].get("layer_scales", False)

    @property
    def head_norms(self):
        return BASE_MODELS[self.base_model_type].get("head_norms")

    @property
    def scales_given_embeddings(self):
        return BASE_MODELS[self.base_model_type].get("multipliers", False)

    @property
    def interleaved_rotary(self):
        return BASE_MODELS[self.base_model_type].get("interleaved_rotary", False)

    @property
    def output_gates(self):
        return "delta_period" in BASE_MODELS[self.base_model_type]

    @property
    def layer_norms(self):
        return BASE_MODELS[self.base_model_type].get("layer_norms", False)

    @property
    def first_position(self):
        return BASE_MODELS[self.base_model_type].get("first_position")

    @property
    def centres_embedding(self):
        shapes = self.dynslice
        is_folded = self.layer_norms and not shapes["layers"][0]["norm_weights"]
        return is_folded and not shapes["embedding_rotation"] and shapes["embedding_width"] == self.hidden_size

    @property
    def input_norms(self):
        return BASE_MODELS[self.base_model_type].get("input_norms", True)

    @property
    def branch_norms(self):
        return BASE_MODELS[self.base_model_type].get("branch_norms", False)

    def convert_rope_params_to_dict(self, **kwargs):
        """transformers 5 would put a theta for all layers beside those by type of layer."""
        return kwargs if "full_attention" in self.rope_parameters else super().convert_rope_params_to_dict(**kwargs)

    def rope_of(self, layer_type):
        """The rope parameters of the layers of that type."""
        return self.rope_parameters.get(layer_type, self.rope_parameters)

    def to_diff_dict(self):
        """What save_pretrained writes. Readers other than this class do not know transformers' defaults."""
        return {**super().to_diff_dict(), "tie_word_embeddings": self.tie_word_embeddings}
