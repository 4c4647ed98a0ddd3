"""4-bit layers in a model whose weights are not yet in 4 bits."""

from typing import Any

from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from trl_trainer.distributed import loading


def put_4_bit_layers(model: PreTrainedModel, config: BitsAndBytesConfig) -> None:
    """Put bitsandbytes' layers in the place of linear ones, as from_pretrained does with `config`; loading.shard
    quantizes their weights, one at a time.

    transformers puts in layers without weights, and knows which ones (not the head); it is asked through the interface
    of its quantizers.
    """
    linear = dict(model.named_modules())
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    for name, layer in model.named_modules():
        if loading.in_4_bits(getattr(layer, "weight", None)):
            _move(linear[name], layer)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


def _move(linear: Any, layer: Any) -> None:
    """Give the weights of a linear layer to the 4-bit one in its place. Conv1D has its matrix the other way round."""
    value = linear.weight
    given = getattr(value, "given", None)
    if isinstance(linear, Conv1D):
        value, given = value.T, None if given is None else given.T
    layer.weight = type(layer.weight)(value.detach(), **vars(layer.weight))
    if given is not None:
        loading.later(layer.weight, given)
    layer.bias = linear.bias
