"""Which files of a repo are downloaded: all that a model of any kind needs, and no second copy of its weights."""

from huggingface_hub.utils._paths import filter_repo_objects

from mlx_manager.mlx_server.models.hub import HUB_PATTERNS


def test_the_files_of_sentence_transformers_are_downloaded() -> None:
    needed = [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    ]
    copies = ["onnx/model.onnx", "openvino/openvino_model.bin", "pytorch_model.bin", "2_Dense/pytorch_model.bin"]
    assert list(filter_repo_objects([*needed, *copies], allow_patterns=list(HUB_PATTERNS))) == needed
